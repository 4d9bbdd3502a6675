package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lookEvery is how often it is looked at what the kernel does not tell of.
const lookEvery = time.Minute

// watch lets destinations go whose connections are over, and notices what others change: rules and addresses at once,
// virtual servers that are gone when it is looked. It begins once.
func (b *Backend) watch() error {
	if b.stop != nil {
		return nil
	}
	addrs, err := subscribe()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	b.stop = stop
	b.ended.Go(func() { b.follow(ctx, addrs) })
	return nil
}

func (b *Backend) follow(ctx context.Context, addrs *subscription) {
	defer func() { addrs.close() }()
	ticks := time.NewTicker(lookEvery)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case u, ok := <-addrs.updates:
			if ok {
				b.heard(u)
				continue
			}
			// Changes came faster than they could be told.
			addrs.close()
			again, err := subscribe()
			if err != nil {
				b.log.Error("ipvs: changes of addresses are not noticed any more", "err", err)
				again = &subscription{}
			}
			addrs = again
			b.tell("too many changes of addresses at once to follow")
		case <-b.rules.Tampered():
			b.tell("another program changed rules")
		case <-ticks.C:
			b.look()
		}
	}
}

// subscription has the kernel tell of addresses that devices get and lose. The zero value is of nothing.
type subscription struct {
	updates chan netlink.AddrUpdate
	stop    chan struct{}
}

// receiveBytes are for the addresses of some ten thousand Services at once, which we are told of like of all others.
const receiveBytes = 8 << 20

func subscribe() (*subscription, error) {
	s := &subscription{updates: make(chan netlink.AddrUpdate), stop: make(chan struct{})}
	err := netlink.AddrSubscribeWithOptions(s.updates, s.stop, netlink.AddrSubscribeOptions{ReceiveBufferSize: receiveBytes, ReceiveBufferForceSize: true})
	if err != nil {
		close(s.stop)
		return nil, fmt.Errorf("ipvs: addresses of devices: %w", err)
	}
	return s, nil
}

// close waits until who tells has seen that nobody listens.
func (s *subscription) close() {
	if s.stop == nil {
		return
	}
	close(s.stop)
	for range s.updates {
	}
}

// tell does not wait: one who comes to restore everything restores all of it.
func (b *Backend) tell(why string, args ...any) {
	select {
	case b.tampered <- struct{}{}:
		b.log.Warn("ipvs: what the kernel holds is to be restored", append([]any{"why", why}, args...)...)
	default:
	}
}

// heard is told of an address that a device got or lost.
func (b *Backend) heard(u netlink.AddrUpdate) {
	addr, _ := netip.AddrFromSlice(u.LinkAddress.IP)
	addr = addr.Unmap()
	ours := int64(u.LinkIndex) == b.deviceIndex.Load()
	if ours && u.NewAddr || addr.IsLinkLocalUnicast() || addr.IsLoopback() {
		return // without the lock: Replace adds thousands while it holds it
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !ours:
		if now, err := nodeBut(b.link, &b.network); err != nil || !now.equal(b.node) {
			b.tell("the node has other addresses", "address", addr.String())
		}
	case b.counts[addr] > 0 && !b.deviceHas(addr):
		b.tell("another program removed an address", "address", addr.String())
	}
}

// deviceHas is asked after an address was removed: we may have added it again since.
func (b *Backend) deviceHas(addr netip.Addr) bool {
	all, err := netlink.AddrList(b.link, unix.AF_UNSPEC)
	return err == nil && slices.ContainsFunc(all, func(a netlink.Addr) bool { // an error is of a device that is gone
		have, _ := netip.AddrFromSlice(a.IP)
		return have.Unmap() == addr
	})
}

func (b *Backend) look() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.letGoLocked()
	all, err := b.handle.GetServices()
	if err != nil {
		return
	}
	there := map[server]bool{}
	for _, s := range all {
		there[serverOf(s)] = true
	}
	for s := range b.servers {
		if !there[s] {
			b.tell("another program removed a virtual server", "server", s.addr.String())
			return
		}
	}
}

// letGoLocked removes destinations whose last connections are over.
func (b *Backend) letGoLocked() {
	byServer := map[server][]leaver{}
	for l := range b.leaving {
		byServer[l.server] = append(byServer[l.server], l)
	}
	for s, leavers := range byServer {
		service := b.service(s, 0)
		all, err := b.handle.GetDestinations(service)
		for _, l := range leavers {
			at := slices.IndexFunc(all, func(d *ipvs.Destination) bool { return endpointOf(d) == l.endpoint })
			if err == nil && at >= 0 && !b.letGo(service, all[at]) {
				continue
			}
			delete(b.leaving, l) // it is gone, or its virtual server
		}
	}
}

// letGo is false for a destination that stays.
func (b *Backend) letGo(service *ipvs.Service, d *ipvs.Destination) bool {
	if d.ActiveConnections+d.InactiveConnections > 0 {
		return false
	}
	err := b.handle.DelDestination(service, d)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		b.log.Warn("a destination without connections stays", "destination", endpointOf(d).String(), "err", err)
		return false
	}
	return true
}
