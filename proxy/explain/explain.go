// Package explain says for people and machines where packets to a Service go from a node and why, by the model and by the
// rules that the kernel has.
package explain

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/orlop/orlop/proxy/model"
)

// Report is about one port of a Service in one family.
type Report struct {
	Service   string     `json:"service"`
	Port      string     `json:"port,omitempty"`
	Protocol  string     `json:"protocol"`
	Family    string     `json:"family"`
	Affinity  string     `json:"affinity,omitempty"` // how long a client keeps its endpoint
	Topology  string     `json:"topology,omitempty"`
	Frontends []Frontend `json:"frontends"`
	Endpoints []Endpoint `json:"endpoints"`
	// Kernel is what was compared with it: "" if nothing, as the mode can't be read back.
	Kernel string `json:"kernel,omitempty"`
	// Differences are between the model and the kernel.
	Differences []string `json:"differences,omitempty"`
}

// Frontend is where the Service is reached.
type Frontend struct {
	Kind    string   `json:"kind"`
	Address string   `json:"address"`           // with its port
	Sources []string `json:"sources,omitempty"` // the only ones that may come
	Owner   string   `json:"owner,omitempty"`   // another Service that has the address
	Routes  []Route  `json:"routes,omitempty"`
}

// Route is what becomes of packets from somewhere.
type Route struct {
	From       string   `json:"from"`
	Action     string   `json:"action"`
	Policy     string   `json:"policy,omitempty"`
	Endpoints  []string `json:"endpoints,omitempty"`
	Masquerade bool     `json:"masquerade,omitempty"`
	Why        string   `json:"why,omitempty"`
}

// Endpoint is one that a slice names.
type Endpoint struct {
	Address string `json:"address"`
	Pod     string `json:"pod,omitempty"`
	Node    string `json:"node,omitempty"`
	Used    bool   `json:"used"`
	Local   bool   `json:"local,omitempty"`
	Why     string `json:"why,omitempty"` // why not
}

// Kernel follows a packet through the rules that the kernel has.
type Kernel interface {
	// Follow tells where the first packet of a connection ends.
	Follow(p model.Packet) (Ending, error)
}

// Ending is where the kernel's rules lead.
type Ending struct {
	Endpoints         []netip.AddrPort
	Masquerade        bool
	Dropped, Rejected bool
}

// Of makes reports. Kernel may be nil.
func Of(all []model.Explanation, network model.Network, kernel Kernel) []Report {
	var out []Report
	for _, x := range all {
		out = append(out, of(x, network, kernel))
	}
	return out
}

func of(x model.Explanation, network model.Network, kernel Kernel) Report {
	key := x.Port.Key
	r := Report{Service: key.Service.String(), Port: key.Port, Protocol: key.Protocol.String(), Family: key.Family.String(), Topology: x.Topology}
	if x.Port.Affinity != 0 {
		r.Affinity = x.Port.Affinity.String()
	}
	for _, f := range x.Port.Frontends {
		r.Frontends = append(r.Frontends, frontend(x.Port, f))
	}
	for _, l := range x.Lost {
		r.Frontends = append(r.Frontends, Frontend{Kind: l.Frontend.Kind.String(), Address: addressOf(l.Frontend), Owner: l.To.String()})
	}
	for _, e := range x.Endpoints {
		r.Endpoints = append(r.Endpoints, Endpoint{Address: e.Addr.String(), Pod: e.Pod, Node: e.Node, Used: e.Cluster, Local: e.Local, Why: e.Why})
	}
	if kernel != nil {
		r.Kernel = "read back"
		r.Differences = differences(x.Port, network, kernel)
	}
	return r
}

func addressOf(f model.Frontend) string {
	if f.Kind == model.NodePort {
		return fmt.Sprintf("port %d of this node", f.Port)
	}
	return netip.AddrPortFrom(f.Addr, f.Port).String()
}

func frontend(port *model.Port, f model.Frontend) Frontend {
	out := Frontend{Kind: f.Kind.String(), Address: addressOf(f)}
	for _, s := range f.Sources {
		out.Sources = append(out.Sources, s.String())
	}
	for source, route := range f.Routes {
		r := Route{From: model.Source(source).String(), Action: route.Action.String(), Masquerade: route.Masquerade}
		switch route.Action {
		case model.Balance:
			r.Policy = route.Set.String()
			for _, e := range port.Endpoints(route.Set) {
				r.Endpoints = append(r.Endpoints, e.Addr.String())
			}
		case model.Reject:
			r.Why = "nobody serves it, on any node"
		case model.Drop:
			r.Why = "its traffic policy is Local, and nobody serves it on this node"
		}
		out.Routes = append(out.Routes, r)
	}
	return out
}

// differences sends a packet from each kind of source to each frontend.
func differences(port *model.Port, network model.Network, kernel Kernel) []string {
	var out []string
	for _, f := range port.Frontends {
		to, ok := target(port.Key.Family, f, network)
		if !ok {
			continue
		}
		for source, route := range f.Routes {
			from, ok := sourceAddr(model.Source(source), port, f, network)
			if !ok {
				continue
			}
			ending, err := kernel.Follow(model.Packet{From: model.Source(source), SourceAddr: from, To: to, Protocol: port.Key.Protocol})
			if err != nil {
				out = append(out, fmt.Sprintf("%s: %v", addressOf(f), err))
				continue
			}
			if got, want := said(ending), said(wanted(port, route)); got != want {
				out = append(out, fmt.Sprintf("%s from %s: the model says %s, the kernel has %s", addressOf(f), model.Source(source), want, got))
			}
		}
	}
	return out
}

func wanted(port *model.Port, route model.Route) Ending {
	out := Ending{Dropped: route.Action == model.Drop, Rejected: route.Action == model.Reject, Masquerade: route.Masquerade}
	if route.Action == model.Balance {
		for _, e := range port.Endpoints(route.Set) {
			out.Endpoints = append(out.Endpoints, e.Addr)
		}
	}
	return out
}

func said(e Ending) string {
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

// target is an address at which a frontend is reached.
func target(family model.Family, f model.Frontend, network model.Network) (netip.AddrPort, bool) {
	if f.Kind != model.NodePort {
		return netip.AddrPortFrom(f.Addr, f.Port), true
	}
	for _, addr := range append(slices.Clone(network.NodePorts), network.NodeIPs...) {
		if model.FamilyOf(addr) == family {
			return netip.AddrPortFrom(addr, f.Port), true
		}
	}
	return netip.AddrPort{}, false
}

// sourceAddr is an address that stands for a source: one that may reach the frontend, as far as there is one.
func sourceAddr(source model.Source, port *model.Port, f model.Frontend, network model.Network) (netip.Addr, bool) {
	var addr netip.Addr
	family := port.Key.Family
	switch source {
	case model.FromPod:
		ranges := network.Local.Of(family)
		if len(ranges) == 0 {
			return addr, false // it is told by its interface, if at all
		}
		// Not an endpoint's: what that sends to itself is masqueraded whatever the route says.
		for addr = ranges[0].Addr().Next(); isEndpoint(port, addr); addr = addr.Next() {
		}
		if !ranges[0].Contains(addr) {
			return addr, false
		}
	case model.FromNode:
		for _, a := range network.NodeIPs {
			if model.FamilyOf(a) == family {
				addr = a
			}
		}
	default:
		addr = netip.MustParseAddr("192.0.2.200") // of documentation (RFC 5737, RFC 3849): it is nobody's
		if family == model.IPv6 {
			addr = netip.MustParseAddr("2001:db8:ffff::200")
		}
		if len(f.Sources) > 0 {
			addr = f.Sources[0].Addr()
		}
	}
	mayCome := len(f.Sources) == 0 || slices.ContainsFunc(f.Sources, func(r netip.Prefix) bool { return r.Contains(addr) })
	return addr, addr.IsValid() && mayCome
}

func isEndpoint(port *model.Port, addr netip.Addr) bool {
	is := func(e model.Endpoint) bool { return e.Addr.Addr() == addr }
	return slices.ContainsFunc(port.Cluster, is) || slices.ContainsFunc(port.Local, is)
}
