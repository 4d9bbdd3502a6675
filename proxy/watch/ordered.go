package watch

import (
	"net/netip"
	"sync"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// ordered lets several goroutines talk to a sink one at a time, and says Synced once.
type ordered struct {
	mu   sync.Mutex
	sink Sink
	done [Kinds]bool
}

func newOrdered(sink Sink) *ordered { return &ordered{sink: sink} }

// service tells how a Service differs from what was told before: old is nil for one that is new, now for one that is gone.
func (o *ordered) service(old, now *model.Service) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now != nil {
		o.sink.SetService(now)
		return
	}
	o.sink.DeleteService(old.Name)
}

// slice is as service. A slice that changes its Service leaves the old one first.
func (o *ordered) slice(old, now *model.Slice) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old != nil && (now == nil || now.Service != old.Service) {
		o.sink.DeleteSlice(old.Service, old.Name)
	}
	if now != nil {
		o.sink.SetSlice(now)
	}
}

func (o *ordered) node(node Node) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sink.SetNode(node)
}

func (o *ordered) serviceCIDRs(cidrs []netip.Prefix) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sink.SetServiceCIDRs(cidrs)
}

func (o *ordered) triggered(at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sink.Triggered(at)
}

func (o *ordered) synced(kind Kind) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.done[kind] {
		o.done[kind] = true
		o.sink.Synced(kind)
	}
}

func (o *ordered) isSynced(kind Kind) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.done[kind]
}
