package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unique"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/watch"
)

// kernel is a backend that writes down what it is told.
type kernel struct {
	tampered chan struct{}

	mu   sync.Mutex
	log  []string
	fail bool // the next call
}

func (k *kernel) note(text string, args ...any) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log = append(k.log, fmt.Sprintf(text, args...))
	if k.fail {
		k.fail = false
		return errors.New("no memory")
	}
	return nil
}

func (k *kernel) failNext() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = true
}

// told is what it was told since the last time.
func (k *kernel) told() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.log
	k.log = nil
	return out
}

func (k *kernel) Replace(_ context.Context, rules model.Rules) error {
	return k.note("replace %d at %v", len(rules.Ports), rules.Network.NodePorts)
}

func (k *kernel) Apply(_ context.Context, changes []model.Change) error {
	return k.note("apply %d", len(changes))
}

func (k *kernel) Tampered() <-chan struct{} { return k.tampered }
func (k *kernel) Close() error              { return nil }

// observer writes down changes that the kernel has.
type observer struct{ changes []string }

func (o *observer) Pending(time.Time) {}
func (o *observer) Synced(s proxy.Sync) {
	if s.Err != nil {
		return
	}
	for _, c := range s.Changes {
		o.changes = append(o.changes, c.Key().Service.Name)
	}
}

// source is told what to tell.
type source chan func(watch.Sink)

func (s source) Run(ctx context.Context, sink watch.Sink) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case tell := <-s:
			tell(sink)
		}
	}
}

// bench is a proxy over a kernel that is none.
type bench struct {
	t         *testing.T
	kernel    *kernel
	told      *observer
	source    source
	proxy     *proxy.Proxy
	nodePorts []netip.Addr
}

// play runs f beside a proxy, in a bubble with a clock of its own.
func play(t *testing.T, f func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, kernel: &kernel{tampered: make(chan struct{}, 1)}, told: &observer{}, source: make(source)}
		b.proxy = proxy.New(proxy.Options{
			Log: slog.New(slog.DiscardHandler), Backend: b.kernel, Observers: []proxy.Observer{b.told}, Node: watch.Node{Node: model.Node{Name: "here"}},
			Network: func(watch.Node, []netip.Prefix) (model.Network, error) {
				return model.Network{Families: []model.Family{model.IPv4}, NodePorts: slices.Clone(b.nodePorts)}, nil
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.proxy.Run(ctx, b.source) }()
		f(b)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func (b *bench) tell(f func(watch.Sink)) {
	b.source <- f
	synctest.Wait()
}

func (b *bench) synced() {
	b.tell(func(s watch.Sink) {
		for kind := range watch.Kinds {
			s.Synced(kind)
		}
	})
}

func (b *bench) add(name string, last byte) {
	b.tell(func(s watch.Sink) {
		s.SetService(&model.Service{Name: model.Name{Namespace: "default", Name: name}, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, last})},
			Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}})
	})
}

// did fails unless the kernel was told just this since the last time.
func (b *bench) did(want ...string) {
	b.t.Helper()
	if got := b.kernel.told(); !slices.Equal(got, want) {
		b.t.Errorf("the kernel was told %q, want %q", got, want)
	}
}

// Nothing is changed before all is known; then all is set once, and after that what changes.
func TestChanges(t *testing.T) {
	play(t, func(b *bench) {
		b.add("a", 1)
		b.tell(func(s watch.Sink) { s.Synced(watch.Services); s.Synced(watch.Slices); s.Synced(watch.Nodes) })
		b.did()
		b.synced()
		b.did("replace 1 at []")
		b.add("b", 2)
		b.did("apply 1")
		b.add("b", 2)
		b.did() // it is the same
		b.tell(func(s watch.Sink) { s.DeleteService(model.Name{Namespace: "default", Name: "a"}) })
		b.did("apply 1")
		b.tell(func(s watch.Sink) { s.SetServiceCIDRs([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}) })
		b.did("replace 1 at []")
	})
}

// What the kernel does not take is tried again, all of it, and nobody misses a change for it.
func TestFailures(t *testing.T) {
	play(t, func(b *bench) {
		b.kernel.failNext()
		b.add("a", 1)
		b.synced()
		b.did("replace 1 at []")
		time.Sleep(time.Second)
		synctest.Wait()
		b.did("replace 1 at []")
		b.kernel.failNext()
		b.add("b", 2)
		b.did("apply 1")
		b.add("c", 3) // is no reason to wait any longer
		b.did("replace 3 at []")
		if want := []string{"a", "b", "c"}; !slices.Equal(b.told.changes, want) {
			t.Errorf("observers were told of %q, want %q", b.told.changes, want)
		}
		time.Sleep(time.Hour)
		b.did()
	})
}

// The time until the next attempt doubles, up to half a minute.
func TestRetries(t *testing.T) {
	play(t, func(b *bench) {
		began := time.Now()
		b.kernel.failNext()
		b.synced()
		for _, want := range []time.Duration{1, 3, 7, 15, 31, 61, 91} {
			b.kernel.failNext()
			time.Sleep(time.Until(began.Add(want*time.Second)) - time.Millisecond)
			b.kernel.told()
			time.Sleep(time.Millisecond)
			synctest.Wait()
			b.did("replace 0 at []")
		}
	})
}

// What others did to the rules is undone at once; the network is looked at again when it is said that it may be another.
func TestTamperedAndRecheck(t *testing.T) {
	play(t, func(b *bench) {
		b.add("a", 1)
		b.synced()
		b.did("replace 1 at []")
		b.kernel.tampered <- struct{}{}
		synctest.Wait()
		b.did("replace 1 at []")
		b.proxy.Recheck()
		synctest.Wait()
		b.did()
		b.nodePorts = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		b.proxy.Recheck()
		synctest.Wait()
		b.did("replace 1 at [192.0.2.1]")
	})
}

// Another zone of the node changes what follows from it, and that it is about to go changes nothing.
func TestNodeChanges(t *testing.T) {
	play(t, func(b *bench) {
		b.add("a", 1)
		b.synced()
		b.did("replace 1 at []")
		name := model.Name{Namespace: "default", Name: "a"}
		b.tell(func(s watch.Sink) {
			s.SetSlice(&model.Slice{Name: name, Service: name, Family: model.IPv4, Ports: []model.SlicePort{{Protocol: model.TCP, Port: 8080}}, Endpoints: []model.SliceEndpoint{
				{Addr: netip.MustParseAddr("10.244.0.1"), Ready: true, Zones: []unique.Handle[string]{unique.Make("east")}},
				{Addr: netip.MustParseAddr("10.244.0.2"), Ready: true, Zones: []unique.Handle[string]{unique.Make("west")}},
			}})
		})
		b.did("apply 1")
		node := watch.Node{Node: model.Node{Name: "here", Zone: "east"}}
		b.tell(func(s watch.Sink) { s.SetNode(node) })
		b.did("apply 1")
		node.Leaving = true
		b.tell(func(s watch.Sink) { s.SetNode(node) })
		b.did()
		b.nodePorts = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		node.Addresses = b.nodePorts
		b.tell(func(s watch.Sink) { s.SetNode(node) })
		b.did("replace 1 at [192.0.2.1]")
	})
}

// Who fights for the same rules is answered once in a while.
func TestTamperedAgainAndAgain(t *testing.T) {
	play(t, func(b *bench) {
		b.synced()
		b.did("replace 0 at []")
		began := time.Now()
		for range 1000 { // for 10 s
			select {
			case b.kernel.tampered <- struct{}{}:
			default:
			}
			time.Sleep(10 * time.Millisecond)
		}
		synctest.Wait()
		b.did("replace 0 at []", "replace 0 at []", "replace 0 at []") // at 0, 5 and 10 s
		b.add("a", 1)
		b.did("apply 1") // what is not restored waits for nothing
		time.Sleep(time.Until(began.Add(time.Minute)))
		b.did()
	})
}
