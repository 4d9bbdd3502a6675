package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

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
	ctx, stop := context.WithCancel(context.Background())
	addrs := make(chan netlink.AddrUpdate)
	if err := netlink.AddrSubscribe(addrs, ctx.Done()); err != nil {
		stop()
		return fmt.Errorf("ipvs: addresses of %s: %w", device, err)
	}
	b.stop = stop
	b.ended.Go(func() {
		ticks := time.NewTicker(lookEvery)
		defer ticks.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case u, ok := <-addrs:
				if !ok {
					addrs = nil
				} else if !u.NewAddr && b.missed(u) {
					b.tell("another program removed an address", "address", u.LinkAddress.IP.String())
				}
			case <-b.rules.Tampered():
				b.tell("another program changed rules")
			case <-ticks.C:
				b.look()
			}
		}
	})
	return nil
}

// tell does not wait: one who comes to restore everything restores all of it.
func (b *Backend) tell(why string, args ...any) {
	select {
	case b.tampered <- struct{}{}:
		b.log.Warn("ipvs: what the kernel holds is to be restored", append([]any{"why", why}, args...)...)
	default:
	}
}

// missed tells whether an address that was removed is one that the device is to have. We may have added it again since.
func (b *Backend) missed(u netlink.AddrUpdate) bool {
	removed, _ := netip.AddrFromSlice(u.LinkAddress.IP)
	removed = removed.Unmap()
	b.mu.Lock()
	defer b.mu.Unlock()
	if u.LinkIndex != b.link.Attrs().Index || b.counts[removed] == 0 {
		return false
	}
	all, err := netlink.AddrList(b.link, unix.AF_UNSPEC)
	if err != nil {
		return true // the device is gone
	}
	return !slices.ContainsFunc(all, func(a netlink.Addr) bool {
		addr, _ := netip.AddrFromSlice(a.IP)
		return addr.Unmap() == removed
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
	for l := range b.leaving {
		service := b.service(l.server, 0)
		all, err := b.handle.GetDestinations(service)
		if err != nil {
			delete(b.leaving, l) // the virtual server is gone, and its destinations with it
			continue
		}
		for _, d := range all {
			if endpointOf(d) == l.endpoint && d.ActiveConnections+d.InactiveConnections == 0 {
				if err := b.handle.DelDestination(service, d); err != nil && !errors.Is(err, unix.ENOENT) {
					b.log.Warn("a destination without connections stays", "destination", l.endpoint.String(), "err", err)
					continue
				}
				delete(b.leaving, l)
			}
		}
	}
}
