package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/trace"
	"github.com/orlop/orlop/proxy/xtables"
)

// Kernel is what the kernel holds in one family: rules, sets, the device's addresses and virtual servers.
type Kernel struct {
	rules *xtables.Rules
	addrs map[netip.Addr]bool // of the device
}

// Read begins to read what the kernel holds in a family. It is for people and tests.
func Read(ctx context.Context, f model.Family) (*Kernel, error) {
	rules, err := xtables.Read(ctx, f)
	if err != nil {
		return nil, err
	}
	rules.InSet, rules.Serve = inSet, serve
	out := &Kernel{rules: rules, addrs: map[netip.Addr]bool{}}
	link, err := netlink.LinkByName(device)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ipvs: device %s: %w", device, err)
	}
	addrs, err := netlink.AddrList(link, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("ipvs: addresses of %s: %w", device, err)
	}
	for _, a := range addrs {
		addr, _ := netip.AddrFromSlice(a.IP)
		out.addrs[addr.Unmap()] = true
	}
	return out, nil
}

// Trace follows a packet through the rules, and to a virtual server if it comes to one.
func (k *Kernel) Trace(ctx context.Context, p trace.Packet) (trace.Ending, error) {
	node := p.Local
	p.Local = func(a netip.Addr) bool { return k.addrs[a] || node(a) }
	return k.rules.Trace(ctx, p)
}

// serve are the destinations of a packet's virtual server that get new connections.
func serve(p trace.Packet) ([]netip.AddrPort, error) {
	handle, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("ipvs: %w", err)
	}
	defer handle.Close()
	s := server{p.To, p.Protocol}
	found, err := handle.GetService((&Backend{}).service(s, 0))
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("virtual server %s: %w", s, err)
	}
	all, err := handle.GetDestinations(found)
	if err != nil {
		return nil, fmt.Errorf("destinations of %s: %w", s, err)
	}
	var out []netip.AddrPort
	for _, d := range all {
		switch d.Weight {
		case 0: // about to leave
		case 1:
			out = append(out, endpointOf(d))
		default:
			return nil, fmt.Errorf("destination %s has weight %d; all of ours have 1", endpointOf(d), d.Weight)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out, nil
}

// inSet asks the kernel for an element that is made of a packet's addresses and port.
func inSet(name, directions string, p trace.Packet) (bool, error) {
	set := setNamed(name, model.FamilyOf(p.To.Addr()))
	at := map[string]netip.AddrPort{"src": p.From, "dst": p.To}
	parts := strings.Split(directions, ",")
	from, known := at[parts[0]]
	kind := setTypes[set]
	if !known || kind == "" {
		return false, fmt.Errorf("set %s with %s is not understood", name, directions)
	}
	if kind == bitmapPort {
		return hasPort(name, from.Port())
	}
	e := entry{set: set, addr: from.Addr(), protocol: p.Protocol}
	if len(parts) > 1 {
		e.port = at[parts[1]].Port()
	}
	if len(parts) > 2 {
		other := at[parts[2]].Addr()
		e.other = netip.PrefixFrom(other, other.BitLen())
	}
	found, err := netlink.IpsetTest(name, e.netlink())
	if err != nil {
		return false, fmt.Errorf("set %s: %w", name, err)
	}
	return found, nil
}

// setNamed is the set of which this is the name in a family; "" for one that is none of ours.
func setNamed(name string, f model.Family) string {
	for set := range setTypes {
		if setName(f, set) == name {
			return set
		}
	}
	return ""
}

// hasPort lists a set of ports, which the library can't ask for one.
func hasPort(name string, port uint16) (bool, error) {
	set, err := netlink.IpsetList(name)
	if err != nil {
		return false, fmt.Errorf("set %s: %w", name, err)
	}
	return slices.ContainsFunc(set.Entries, func(e netlink.IPSetEntry) bool { return e.Port != nil && *e.Port == port }), nil
}

// Served is a port as this mode serves it: with one list of endpoints for each frontend, wherever packets are from.
func Served(port *model.Port) *model.Port {
	out := *port
	out.Frontends = slices.Clone(port.Frontends)
	for i, f := range out.Frontends {
		set, _ := chosen(f.Routes)
		for source := range f.Routes {
			if f.Routes[source].Action == model.Balance {
				out.Frontends[i].Routes[source].Set = set
			}
		}
	}
	return &out
}
