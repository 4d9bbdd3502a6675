// Package watch finds out what the model is made of: Services, EndpointSlices, this node, and where ClusterIPs come from.
// It follows an API server, or a directory of the same objects, or, on a machine that is alone, a directory of Services and
// the pods of the node's kubelet.
//
// Objects are reduced to the model's types as they come in: of ten thousand Services no object of the API is ever in memory
// together with another, but for those of a server that can't stream them.
package watch

import (
	"context"
	"net/netip"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// Source tells of objects.
type Source interface {
	// Run tells sink of all objects, then of changes, until ctx ends. What can't be had is logged and tried again; an error
	// means that it never can.
	Run(ctx context.Context, sink Sink) error
}

// Sink is told what a Source says. Its methods are called one at a time and in the order of what happened, though from
// several goroutines. They must not block: nothing else is heard meanwhile.
type Sink interface {
	Objects
	// SetNode tells how this node is now; also once it is gone from the API server.
	SetNode(node Node)
	// SetServiceCIDRs tells all ranges that ClusterIPs come from, in order; none where it isn't known.
	SetServiceCIDRs(cidrs []netip.Prefix)
	// Triggered tells when that happened which the next SetSlice follows from, if it is known and new: the time of the
	// annotation endpoints.kubernetes.io/last-change-trigger-time, which has the API server's clock.
	Triggered(at time.Time)
	// Synced tells that everything of a kind which was there at the start has been told. It comes once for each kind.
	Synced(kind Kind)
}

// Objects takes what Services are made of, as model.State does. What is passed in is never changed afterwards.
type Objects interface {
	SetService(service *model.Service)
	DeleteService(name model.Name)
	SetSlice(slice *model.Slice)
	DeleteSlice(service, slice model.Name)
}

// Kind is a kind of objects.
type Kind uint8

// The kinds, each of which every Source calls Synced for.
const (
	Services Kind = iota
	Slices
	Nodes
	ServiceCIDRs
	Kinds // how many there are
)

func (k Kind) String() string {
	return [...]string{"Services", "EndpointSlices", "Nodes", "ServiceCIDRs"}[k]
}
