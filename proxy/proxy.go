// Package proxy makes a node treat packets to Services as the Service API says. It takes objects from a source, lets
// package model say what follows from them, and has a backend make the kernel do it:
//
//	watch.Source ──▶ Proxy (watch.Sink) ──▶ model.State ──▶ Backend ──▶ kernel
//	                                              └───────▶ Observer: health checks, metrics, connection tracking
package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/watch"
)

// Backend makes the kernel do what the model says, in every family of the network. It keeps in memory what it has made
// the kernel hold, so that a change costs what the change is. Its methods are called by one goroutine.
type Backend interface {
	// Replace makes the kernel hold rules and nothing else that a backend of this kind ever made, also in an earlier
	// process or by a kube-proxy in the same mode. It is called at the start, when the network is another, and after
	// Tampered. Established connections go on, affinities are kept, and no packet meets half of the rules.
	Replace(ctx context.Context, rules model.Rules) error
	// Apply makes it hold changes to what Replace and Apply said before. After an error the caller calls Replace.
	Apply(ctx context.Context, changes []model.Change) error
	// Tampered receives when somebody else changed what this backend made the kernel hold.
	Tampered() <-chan struct{}
	// Close ends what watches, and leaves the rules in the kernel.
	Close() error
}

// Observer is told of what was done. It is called by one goroutine, which waits for it.
type Observer interface {
	// Pending is called when there is something to do that was not there after the last sync.
	Pending(at time.Time)
	Synced(s Sync)
}

// Sync is an attempt to make the kernel hold what the objects say.
type Sync struct {
	// Full is true for all rules, false for changes only. Ports are all of them, if Full.
	Full  bool
	Ports []*model.Port
	// Changes are those since the last sync that did not fail.
	Changes []model.Change
	// Began and Ended are when the backend was asked, and when it was done.
	Began, Ended time.Time
	// Err is why the kernel doesn't hold what it should; all is tried again.
	Err error
	// Triggers are when that happened in the cluster which led to changes, where it is known.
	Triggers []time.Time
	// HealthChecks are those of all Services that have one.
	HealthChecks []model.HealthCheck
	Node         watch.Node
	Network      model.Network

	outdated int // as Proxy's, when what is pending was taken
}

// Options are what a Proxy is made of.
type Options struct {
	Log     *slog.Logger
	Backend Backend
	// Node is this node before a source knows more of it.
	Node watch.Node
	// Network says what the rules need to know on a node as it is now, where ClusterIPs come from these ranges.
	Network func(node watch.Node, serviceCIDRs []netip.Prefix) (model.Network, error)
	// MinInterval lies between the begins of syncs, for backends to which many changes at once cost little more than one.
	MinInterval time.Duration
	Observers   []Observer
}

// Proxy keeps the kernel's rules as the objects say.
type Proxy struct {
	Options
	wake chan struct{} // has room for one: something is pending

	mu       sync.Mutex
	state    *model.State
	node     watch.Node
	cidrs    []netip.Prefix
	synced   map[watch.Kind]bool
	triggers []time.Time
	// outdated counts the events after which all rules are to be replaced, as of what is not of single ports, and replaced
	// is the number of those that were followed by that.
	outdated, replaced int
	network            model.Network // that of the last replacement
	// recheck is true if the network may be another.
	recheck bool
	pending bool
	// unsaid are changes that the state has committed, and that the kernel has not been told.
	unsaid []model.Change
}

// New is a Proxy that knows of nothing yet. It is a watch.Sink.
func New(o Options) *Proxy {
	return &Proxy{
		Options: o, wake: make(chan struct{}, 1), state: model.NewState(o.Node.Node, model.Network{}), node: o.Node,
		synced: map[watch.Kind]bool{}, outdated: 1,
	}
}

// Run keeps the rules until ctx ends, and leaves them in the kernel. Nothing is changed before the source has told all
// that was there at the start.
func (p *Proxy) Run(ctx context.Context, source watch.Source) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		defer cancel() // without a source nothing will ever change
		ended <- source.Run(ctx, p)
	}()
	p.loop(ctx)
	cancel()
	return <-ended
}
