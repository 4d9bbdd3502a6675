package proxy

import (
	"net/netip"
	"slices"
	"time"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/watch"
)

var _ watch.Sink = (*Proxy)(nil)

// note has something done under the lock that the kernel is to be told of.
func (p *Proxy) note(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.noteLocked()
}

func (p *Proxy) noteLocked() {
	if len(p.synced) < int(watch.Kinds) {
		return
	}
	if !p.pending {
		p.pending = true
		for _, o := range p.Observers {
			o.Pending(time.Now())
		}
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Recheck has the network asked for again, as when interfaces have other addresses. The rules are set anew only if it is
// another.
func (p *Proxy) Recheck() { p.note(func() { p.recheck = true }) }

// SetService is of watch.Sink.
func (p *Proxy) SetService(s *model.Service) { p.note(func() { p.state.SetService(s) }) }

// DeleteService is of watch.Sink.
func (p *Proxy) DeleteService(name model.Name) { p.note(func() { p.state.DeleteService(name) }) }

// SetSlice is of watch.Sink.
func (p *Proxy) SetSlice(s *model.Slice) { p.note(func() { p.state.SetSlice(s) }) }

// DeleteSlice is of watch.Sink.
func (p *Proxy) DeleteSlice(service, slice model.Name) {
	p.note(func() { p.state.DeleteSlice(service, slice) })
}

// Triggered is of watch.Sink.
func (p *Proxy) Triggered(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.triggers = append(p.triggers, at)
}

// SetNode is of watch.Sink.
func (p *Proxy) SetNode(node watch.Node) {
	p.note(func() {
		if p.node.Equal(node) {
			return
		}
		p.node = node
		p.recheck = true // of the node's addresses and its pods', a change of which is one of all rules
		p.state.SetNode(node.Node)
	})
}

// SetServiceCIDRs is of watch.Sink.
func (p *Proxy) SetServiceCIDRs(cidrs []netip.Prefix) {
	p.note(func() {
		if !slices.Equal(p.cidrs, cidrs) {
			p.cidrs = cidrs
			p.outdated++
		}
	})
}

// Synced is of watch.Sink.
func (p *Proxy) Synced(kind watch.Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced[kind] = true
	p.noteLocked()
}
