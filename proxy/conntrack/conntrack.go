// Package conntrack has the kernel forget UDP flows that lead nowhere. A flow goes on to where its first packet went, for
// as long as packets come: a client that never stops sending would never hear of a new endpoint. TCP connections end by
// themselves, as somebody answers or nobody does.
package conntrack

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/model"
)

// Cleaner is a proxy.Observer. It works beside the proxy and never delays it.
type Cleaner struct {
	log *slog.Logger
	// done is told of each cleaning: how long it took, and how many flows were forgotten.
	done func(family model.Family, took time.Duration, forgotten int)
	wake chan struct{} // has room for one

	mu sync.Mutex
	// pending are the ports of which flows may lead nowhere, as they are now.
	pending map[model.PortKey]*model.Port
}

// New makes a Cleaner. Its Run must be called; done may be nil.
func New(log *slog.Logger, done func(model.Family, time.Duration, int)) *Cleaner {
	if done == nil {
		done = func(model.Family, time.Duration, int) {}
	}
	return &Cleaner{log: log, done: done, wake: make(chan struct{}, 1), pending: map[model.PortKey]*model.Port{}}
}

// Pending is of proxy.Observer.
func (c *Cleaner) Pending(time.Time) {}

// Synced is of proxy.Observer. The rules are in the kernel by now, so that a forgotten flow's next packet meets them.
func (c *Cleaner) Synced(s proxy.Sync) {
	if s.Err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, port := range s.Ports { // after a start nobody knows what happened before
		c.noteLocked(port)
	}
	for _, change := range s.Changes {
		switch {
		case change.New == nil:
			delete(c.pending, change.Key()) // connections to a Service that is gone go on, as with TCP
		case change.Old == nil || loses(change.Old, change.New):
			c.noteLocked(change.New)
		}
	}
	if len(c.pending) > 0 {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

func (c *Cleaner) noteLocked(port *model.Port) {
	if port.Key.Protocol == model.UDP {
		c.pending[port.Key] = port
	}
}

// loses tells whether flows may lead to what does not serve any more, or to nobody since nobody served before.
func loses(old, now *model.Port) bool {
	return len(old.Serving) == 0 && len(now.Serving) > 0 ||
		slices.ContainsFunc(old.Serving, func(e netip.AddrPort) bool { return !slices.Contains(now.Serving, e) }) ||
		!slices.EqualFunc(old.Frontends, now.Frontends, model.Frontend.Equal)
}

// Run cleans until ctx ends.
func (c *Cleaner) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		c.mu.Lock()
		ports := c.pending
		c.pending = map[model.PortKey]*model.Port{}
		c.mu.Unlock()
		for _, family := range []model.Family{model.IPv4, model.IPv6} {
			began := time.Now()
			n, err := clean(family, ports)
			if err != nil {
				c.log.Warn("connection tracking can't be cleaned", "family", family.String(), "forgotten", n, "err", err)
			}
			c.done(family, time.Since(began), n)
		}
	}
}

// clean forgets flows to ports of a family whose answers would come from an endpoint that does not serve.
func clean(family model.Family, ports map[model.PortKey]*model.Port) (int, error) {
	s := &stale{byAddr: map[netip.AddrPort]*model.Port{}, byNodePort: map[uint16]*model.Port{}}
	for _, port := range ports {
		if port.Key.Family == family {
			s.add(port)
		}
	}
	if len(s.byAddr) == 0 && len(s.byNodePort) == 0 {
		return 0, nil
	}
	if len(s.byNodePort) > 0 {
		if err := s.findNode(); err != nil {
			return 0, err
		}
	}
	inet := netlink.InetFamily(unix.AF_INET)
	if family == model.IPv6 {
		inet = unix.AF_INET6
	}
	n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, inet, s)
	if errors.Is(err, unix.ENOENT) { // a flow ended meanwhile
		err = nil
	}
	return int(n), err
}

// stale finds flows that lead nowhere. It is a netlink.CustomConntrackFilter.
type stale struct {
	byAddr     map[netip.AddrPort]*model.Port
	byNodePort map[uint16]*model.Port
	node       map[netip.Addr]bool // the node's own addresses
}

func (s *stale) add(port *model.Port) {
	for _, f := range port.Frontends {
		if f.Kind == model.NodePort {
			s.byNodePort[f.Port] = port
			continue
		}
		s.byAddr[netip.AddrPortFrom(f.Addr, f.Port)] = port
	}
}

// findNode lists the node's addresses: a flow to another host's port of the same number is none of ours.
func (s *stale) findNode() error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	s.node = map[netip.Addr]bool{}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				s.node[addr.Unmap()] = true
			}
		}
	}
	return nil
}

// MatchConntrackFlow is true for a flow that is to be forgotten.
func (s *stale) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, answers := addrPort(flow.Forward.DstIP, flow.Forward.DstPort), addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort)
	port := s.byAddr[to]
	if port == nil && s.node[to.Addr()] {
		port = s.byNodePort[to.Port()]
	}
	return port != nil && !slices.Contains(port.Serving, answers)
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
