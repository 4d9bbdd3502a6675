package model

import (
	"maps"
	"net/netip"
	"slices"
	"unique"
)

// Explanation is why a port is as it is.
type Explanation struct {
	Port *Port
	// Lost are the frontends that the port would like to have and an older one has.
	Lost []Lost
	// Endpoints are all that the slices name, in the order of their addresses.
	Endpoints []ExplainedEndpoint
	// Topology is by which hints endpoints were chosen: PreferSameNode, PreferSameZone, or "" for none.
	Topology string
}

// Lost is a frontend that another port has.
type Lost struct {
	Frontend Frontend
	To       PortKey
}

// ExplainedEndpoint is an endpoint, and why it is in a list or not.
type ExplainedEndpoint struct {
	Addr      netip.AddrPort
	Pod, Node string
	// Cluster and Local tell in which of the port's lists it is.
	Cluster, Local bool
	// Why is why it isn't in a list for policy Cluster; empty if it is.
	Why string
}

// Explain tells of each port of a Service. It is empty for one that isn't there.
func (s *State) Explain(name Name) []Explanation {
	e := s.services[name]
	if e == nil {
		return nil
	}
	var out []Explanation
	for _, want := range e.wants {
		all := portEndpoints(e.slices, want.Key)
		c := choose(all, s.node)
		x := Explanation{Port: s.owned(want), Topology: c.topology, Endpoints: s.explain(all, c)}
		for _, f := range want.Frontends {
			if owner := s.claims[keyOf(want, f)][0].key; owner != want.Key {
				x.Lost = append(x.Lost, Lost{Frontend: f, To: owner})
			}
		}
		out = append(out, x)
	}
	return out
}

func (s *State) explain(all map[netip.AddrPort]SliceEndpoint, c choice) []ExplainedEndpoint {
	in := func(list []Endpoint, addr netip.AddrPort) bool {
		return slices.ContainsFunc(list, func(e Endpoint) bool { return e.Addr == addr })
	}
	var out []ExplainedEndpoint
	for _, addr := range slices.SortedFunc(maps.Keys(all), netip.AddrPort.Compare) {
		e := all[addr]
		x := ExplainedEndpoint{Addr: addr, Pod: e.Pod, Node: e.Node.Value(), Cluster: in(c.cluster, addr), Local: in(c.local, addr)}
		if !x.Cluster {
			x.Why = s.whyNot(e, c)
		}
		out = append(out, x)
	}
	return out
}

func (s *State) whyNot(e SliceEndpoint, c choice) string {
	switch {
	case e.Ready && c.topology == sameNode && !slices.Contains(e.Nodes, unique.Make(s.node.Name)):
		return "its hints are for other nodes"
	case e.Ready && c.topology == sameZone:
		return "its hints are for other zones"
	case e.Terminating && !e.Serving:
		return "it is terminating and does not serve any more"
	case e.Terminating:
		return "it is terminating, and others are ready"
	}
	return "it is not ready"
}

// Services are the names of all that are there.
func (s *State) Services() []Name {
	var out []Name
	for name, e := range s.services {
		if e.service != nil {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, Name.Compare)
	return out
}
