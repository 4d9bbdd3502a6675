package explain

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/trace"
)

// comparison is of what the model says of a port with what the kernel's rules do.
type comparison struct {
	port    *model.Port
	network model.Network
	kernel  Kernel
}

// probe is a packet that is sent through the kernel's rules in thought, and what is to become of it.
type probe struct {
	from string // for people
	addr netip.Addr
	in   string
	want trace.Ending
}

// differences sends a packet from each kind of source to each frontend.
func (c comparison) differences(ctx context.Context) []string {
	var out []string
	for _, f := range c.port.Frontends {
		to, ok := c.target(f)
		if !ok {
			continue
		}
		for _, p := range c.probes(f) {
			got, err := c.kernel.Trace(ctx, trace.Packet{
				From: netip.AddrPortFrom(p.addr, clientPort), To: to, Protocol: c.port.Key.Protocol, In: p.in, Local: c.onNode,
			})
			if err != nil {
				out = append(out, fmt.Sprintf("%s: %v", addressOf(f), err))
				continue
			}
			if got, want := said(got), said(p.want); got != want {
				out = append(out, fmt.Sprintf("%s from %s: the model says %s, the kernel has %s", addressOf(f), p.from, want, got))
			}
		}
	}
	return out
}

// clientPort is one that clients have; no rule asks for it.
const clientPort = 40000

// probes are packets to a frontend, as far as there are addresses that stand for who may reach it, and for who may not.
func (c comparison) probes(f model.Frontend) []probe {
	var out []probe
	for source, route := range f.Routes {
		p := probe{from: model.Source(source).String(), want: c.wanted(route)}
		switch model.Source(source) {
		case model.FromPod:
			p.addr, p.in = c.pod(), c.podInterface()
		case model.FromNode:
			p.addr = c.node()
		case model.FromOutside:
			p.addr, p.in = c.strangers()[0], outsideInterface
			if len(f.Sources) > 0 {
				p.addr = f.Sources[0].Addr()
			}
		}
		if p.addr.IsValid() && mayCome(f, p.addr) {
			out = append(out, p)
		}
	}
	for _, addr := range c.strangers() {
		if !mayCome(f, addr) {
			return append(out, probe{from: "a source that may not come", addr: addr, in: outsideInterface, want: trace.Ending{Dropped: true}})
		}
	}
	return out
}

func mayCome(f model.Frontend, addr netip.Addr) bool {
	return len(f.Sources) == 0 || slices.ContainsFunc(f.Sources, func(r netip.Prefix) bool { return r.Contains(addr) })
}

// outsideInterface is none of the pods'.
const outsideInterface = "outside"

// pod is an address that a pod may have, but no endpoint: what that sends to itself is masqueraded whatever the route says.
func (c comparison) pod() netip.Addr {
	ranges := c.network.Local.Of(c.port.Key.Family)
	switch {
	case c.podInterface() != outsideInterface:
		return c.strangers()[1] // it is told by its interface alone
	case len(ranges) == 0:
		return netip.Addr{}
	}
	addr := ranges[0].Addr().Next()
	for c.isEndpoint(addr) {
		addr = addr.Next()
	}
	if !ranges[0].Contains(addr) {
		return netip.Addr{}
	}
	return addr
}

func (c comparison) isEndpoint(addr netip.Addr) bool {
	is := func(e model.Endpoint) bool { return e.Addr.Addr() == addr }
	return slices.ContainsFunc(c.port.Cluster, is) || slices.ContainsFunc(c.port.Local, is)
}

// podInterface is where a pod's packets come in.
func (c comparison) podInterface() string {
	if name := c.network.Local.Bridge + c.network.Local.InterfacePrefix; name != "" {
		return name
	}
	return outsideInterface
}

func (c comparison) node() netip.Addr {
	at := slices.IndexFunc(c.network.NodeIPs, func(a netip.Addr) bool { return model.FamilyOf(a) == c.port.Key.Family })
	if at < 0 {
		return netip.Addr{}
	}
	return c.network.NodeIPs[at]
}

// strangers are addresses for documentation (RFC 5737, RFC 3849), which are nobody's.
func (c comparison) strangers() []netip.Addr {
	texts := []string{"192.0.2.200", "198.51.100.200", "203.0.113.200"}
	if c.port.Key.Family == model.IPv6 {
		texts = []string{"2001:db8:ffff::200", "2001:db8:fffe::200", "3fff:ffff::200"}
	}
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

func (c comparison) onNode(a netip.Addr) bool {
	return slices.Contains(c.network.NodeIPs, a) || slices.Contains(c.network.NodePorts, a)
}

// target is an address at which a frontend is reached.
func (c comparison) target(f model.Frontend) (netip.AddrPort, bool) {
	if f.Kind != model.NodePort {
		return netip.AddrPortFrom(f.Addr, f.Port), true
	}
	for _, addr := range slices.Concat(c.network.NodePorts, c.network.NodeIPs) {
		if model.FamilyOf(addr) == c.port.Key.Family {
			return netip.AddrPortFrom(addr, f.Port), true
		}
	}
	return netip.AddrPort{}, false
}

func (c comparison) wanted(route model.Route) trace.Ending {
	out := trace.Ending{Dropped: route.Action == model.Drop, Rejected: route.Action == model.Reject, Masquerade: route.Masquerade}
	if route.Action == model.Balance {
		for _, e := range c.port.Endpoints(route.Set) {
			out.Endpoints = append(out.Endpoints, e.Addr)
		}
	}
	return out
}

func said(e trace.Ending) string {
	switch {
	case e.Rejected:
		return "reject"
	case e.Dropped:
		return "drop"
	case len(e.Endpoints) == 0:
		return "nothing"
	}
	slices.SortFunc(e.Endpoints, netip.AddrPort.Compare)
	text := fmt.Sprint(e.Endpoints)
	if e.Masquerade {
		text += " masqueraded"
	}
	return text
}
