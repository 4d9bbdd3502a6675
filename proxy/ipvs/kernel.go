package ipvs

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// persistent is IP_VS_SVC_F_PERSISTENT: a client keeps its destination.
const persistent = 1

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
			return fmt.Errorf("virtual server %s with scheduler %q: %w", s.addr, b.settings.Scheduler, err)
		}
	case before.affinity != now.affinity:
		if err := b.handle.UpdateService(service); err != nil {
			return fmt.Errorf("virtual server %s: %w", s.addr, err)
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
		return fmt.Errorf("destination %s of %s: %w", e, s.addr, err)
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
		return fmt.Errorf("destination %s of %s: %w", e, s.addr, err)
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
				return fmt.Errorf("virtual server %s: %w", s.addr, err)
			}
			continue
		}
		destinations, err := b.handle.GetDestinations(h)
		if err != nil {
			return fmt.Errorf("destinations of %s: %w", s.addr, err)
		}
		found := there[s]
		if h.Flags&persistent != 0 {
			found.affinity = time.Duration(h.Timeout) * time.Second
		}
		if h.SchedName != b.settings.Scheduler {
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
		if there[addr] = true; !slices.Contains(all.addrs, addr) && !addr.IsLinkLocalUnicast() {
			if err := netlink.AddrDel(b.link, &h); err != nil {
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

func deviceAddr(addr netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}, Flags: unix.IFA_F_NODAD}
}

// temporary is the set that a new one is built in before it takes the old one's place.
const temporary = "KUBE-NEXT"

// replaceSets makes the sets those that are described, each at once.
func (b *Backend) replaceSets(all *described) error {
	bySet := map[model.Family]map[string][]entry{model.IPv4: {}, model.IPv6: {}}
	for _, e := range all.entries {
		family := model.FamilyOf(e.addr)
		bySet[family][e.set] = append(bySet[family][e.set], e)
	}
	for _, family := range b.network.Families {
		for set, kind := range setTypes {
			if err := replaceSet(family, set, kind, bySet[family][set]); err != nil {
				return fmt.Errorf("ipset %s: %w", setName(family, set), err)
			}
		}
	}
	return nil
}

// kubeProxySets are those of a kube-proxy's that we have none of.
var kubeProxySets = []string{
	"NODE-PORT-TCP", "NODE-PORT-UDP", "NODE-PORT-SCTP-HASH", "NODE-PORT-LOCAL-TCP", "NODE-PORT-LOCAL-UDP",
	"NODE-PORT-LOCAL-SCTP-HASH", "LOAD-BALANCER-SOURCE-IP", "HEALTH-CHECK-NODE-PORT",
}

// dropSets removes the sets of which no rule is left: all but ours of some families.
func dropSets(but []model.Family) error {
	var errs []error
	for _, family := range []model.Family{model.IPv4, model.IPv6} {
		gone := slices.Clone(kubeProxySets)
		if !slices.Contains(but, family) {
			gone = slices.AppendSeq(gone, maps.Keys(setTypes))
		}
		for _, set := range gone {
			if err := netlink.IpsetDestroy(setName(family, set)); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("ipset %s: %w", setName(family, set), err))
			}
		}
	}
	return errors.Join(errs...)
}

// maxEntries is how many a set may hold.
const maxEntries = 1 << 20

func replaceSet(family model.Family, set, kind string, entries []entry) error {
	options := netlink.IpsetCreateOptions{Family: unix.AF_INET, MaxElements: maxEntries}
	if family == model.IPv6 {
		options.Family = unix.AF_INET6
	}
	if err := netlink.IpsetDestroy(temporary); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := netlink.IpsetCreate(temporary, kind, options); err != nil {
		return err
	}
	for _, e := range entries {
		if err := e.add(temporary); err != nil {
			return err
		}
	}
	options.Replace = true // no error if it is there
	if err := netlink.IpsetCreate(setName(family, set), kind, options); err != nil {
		return err
	}
	if err := netlink.IpsetSwap(temporary, setName(family, set)); err != nil {
		return err
	}
	return netlink.IpsetDestroy(temporary)
}

// netlink is the entry as the library takes it.
func (e entry) netlink() *netlink.IPSetEntry {
	out := &netlink.IPSetEntry{IP: e.addr.AsSlice()}
	if e.set != ipvsIPs {
		protocol, port := uint8(e.protocol), e.port
		out.Protocol, out.Port = &protocol, &port
	}
	if e.other.IsValid() {
		out.IP2 = e.other.Addr().AsSlice()
		if setTypes[e.set] == "hash:ip,port,net" {
			out.CIDR2 = uint8(e.other.Bits())
		}
	}
	return out
}

func (e entry) name(in string) string {
	if in != "" {
		return in
	}
	return setName(model.FamilyOf(e.addr), e.set)
}

// add puts the entry in its set, or in another of the same kind.
func (e entry) add(in string) error {
	err := netlink.IpsetAdd(e.name(in), e.netlink())
	if err != nil && !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) {
		return fmt.Errorf("ipset %s: add %s: %w", e.name(in), e.addr, err)
	}
	return nil
}

func (e entry) del() error {
	err := netlink.IpsetDel(e.name(""), e.netlink())
	if err != nil && !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) {
		return fmt.Errorf("ipset %s: delete %s: %w", e.name(""), e.addr, err)
	}
	return nil
}
