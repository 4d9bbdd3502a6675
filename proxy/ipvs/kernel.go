package ipvs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// What a virtual server does: see ip_vs.h.
const (
	persistent = 1 << 0 // IP_VS_SVC_F_PERSISTENT: a client keeps its destination
	withPort   = 1 << 4 // IP_VS_SVC_F_SCHED2, of scheduler mh: the client's port counts as well as its address
)

func (b *Backend) service(s server, affinity time.Duration) *ipvs.Service {
	out := &ipvs.Service{
		Address: s.addr.Addr().AsSlice(), Port: s.addr.Port(), Protocol: uint16(s.protocol), SchedName: b.settings.Scheduler,
		AddressFamily: unix.AF_INET, Netmask: 0xffffffff,
	}
	if s.addr.Addr().Is6() {
		out.AddressFamily, out.Netmask = unix.AF_INET6, 128
	}
	if affinity != 0 {
		out.Flags, out.Timeout = persistent, uint32(affinity.Seconds())
	}
	if out.SchedName == "mh" {
		out.Flags |= withPort
	}
	return out
}

func destination(e netip.AddrPort, weight int) *ipvs.Destination {
	out := &ipvs.Destination{Address: e.Addr().AsSlice(), Port: e.Port(), Weight: weight, AddressFamily: unix.AF_INET}
	if e.Addr().Is6() {
		out.AddressFamily = unix.AF_INET6
	}
	return out
}

// setServer brings a virtual server from what it was to what it is to be.
func (b *Backend) setServer(s server, before, now destinations, there bool) error {
	service := b.service(s, now.affinity)
	switch {
	case !there:
		if err := b.handle.NewService(service); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("virtual server %s with scheduler %q: %w", s, b.settings.Scheduler, err)
		}
	case before.affinity != now.affinity:
		if err := b.handle.UpdateService(service); err != nil {
			return fmt.Errorf("virtual server %s: %w", s, err)
		}
	}
	for _, e := range now.endpoints {
		if !slices.Contains(before.endpoints, e) {
			if err := b.addDestination(service, s, e); err != nil {
				return err
			}
		}
	}
	for _, e := range before.endpoints {
		if !slices.Contains(now.endpoints, e) {
			if err := b.endDestination(service, s, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// addDestination also takes one back that was about to leave.
func (b *Backend) addDestination(service *ipvs.Service, s server, e netip.AddrPort) error {
	delete(b.leaving, leaver{s, e})
	err := b.handle.NewDestination(service, destination(e, 1))
	if errors.Is(err, unix.EEXIST) {
		err = b.handle.UpdateDestination(service, destination(e, 1))
	}
	if err != nil {
		return fmt.Errorf("destination %s of %s: %w", e, s, err)
	}
	return nil
}

// endDestination has a destination get no new connections; it goes when those that it has are over. UDP has none, and a
// client that never stops sending would never be sent elsewhere.
func (b *Backend) endDestination(service *ipvs.Service, s server, e netip.AddrPort) error {
	var err error
	if s.protocol == model.UDP {
		err = b.handle.DelDestination(service, destination(e, 0))
	} else if err = b.handle.UpdateDestination(service, destination(e, 0)); err == nil {
		b.leaving[leaver{s, e}] = true
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("destination %s of %s: %w", e, s, err)
	}
	return nil
}

func serverOf(s *ipvs.Service) server {
	addr, _ := netip.AddrFromSlice(s.Address)
	return server{netip.AddrPortFrom(addr.Unmap(), s.Port), model.Protocol(s.Protocol)}
}

func endpointOf(d *ipvs.Destination) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(d.Address)
	return netip.AddrPortFrom(addr.Unmap(), d.Port)
}

// replaceServers makes the virtual servers those that are described, and leaves excluded ones alone.
func (b *Backend) replaceServers(all *described) error {
	have, err := b.handle.GetServices()
	if err != nil {
		return fmt.Errorf("list virtual servers: %w", err)
	}
	there := map[server]destinations{}
	for _, h := range have {
		s := serverOf(h)
		if h.FWMark != 0 || slices.ContainsFunc(b.settings.Exclude, func(p netip.Prefix) bool { return p.Contains(s.addr.Addr()) }) {
			continue
		}
		if _, wanted := all.servers[s]; !wanted {
			if err := b.handle.DelService(h); err != nil {
				return fmt.Errorf("virtual server %s: %w", s, err)
			}
			continue
		}
		destinations, err := b.handle.GetDestinations(h)
		if err != nil {
			return fmt.Errorf("destinations of %s: %w", s, err)
		}
		found := there[s]
		if h.Flags&persistent != 0 {
			found.affinity = time.Duration(h.Timeout) * time.Second
		}
		if want := b.service(s, found.affinity); h.SchedName != want.SchedName || (h.Flags^want.Flags)&withPort != 0 {
			found.affinity = -1 // to be set anew
		}
		for _, d := range destinations {
			found.endpoints = append(found.endpoints, endpointOf(d))
			if d.Weight == 0 {
				found.endpoints = found.endpoints[:len(found.endpoints)-1]
				b.leaving[leaver{s, endpointOf(d)}] = true
			}
		}
		there[s] = found
	}
	for s, want := range all.servers {
		before, ok := there[s]
		if err := b.setServer(s, before, want, ok); err != nil {
			return err
		}
	}
	return nil
}

// replaceAddrs makes the addresses of the device those that are described.
func (b *Backend) replaceAddrs(all *described) error {
	have, err := netlink.AddrList(b.link, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", device, err)
	}
	there := map[netip.Addr]bool{}
	for _, h := range have {
		addr, _ := netip.AddrFromSlice(h.IP)
		addr = addr.Unmap()
		if there[addr] = true; b.counts[addr] == 0 && !addr.IsLinkLocalUnicast() {
			if err := netlink.AddrDel(b.link, &h); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("address %s: %w", addr, err)
			}
		}
	}
	for _, addr := range all.addrs {
		if !there[addr] {
			if err := b.addAddr(addr); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *Backend) addAddr(addr netip.Addr) error {
	if err := netlink.AddrAdd(b.link, deviceAddr(addr)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	return nil
}

func (b *Backend) removeAddr(addr netip.Addr) error {
	if err := netlink.AddrDel(b.link, deviceAddr(addr)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	return nil
}

func deviceAddr(addr netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}, Flags: unix.IFA_F_NODAD}
}
