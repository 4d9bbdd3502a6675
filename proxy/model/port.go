package model

import (
	"net/netip"
	"slices"
)

// makePort is what a node does for one port of a Service. Frontends are those that the port would like to have; an
// address that a Service has twice is one frontend, of the kind with the stricter rules.
func makePort(s *Service, p ServicePort, key PortKey, c choice, from senders) *Port {
	port := &Port{Key: key, HealthCheckNodePort: s.HealthCheckNodePort, Affinity: s.Affinity}
	add := func(kind Kind, addrs []netip.Addr, routes Routes) {
		for _, addr := range addrs {
			twice := slices.ContainsFunc(port.Frontends, func(f Frontend) bool { return f.Addr == addr })
			if FamilyOf(addr) == key.Family && !twice {
				port.Frontends = append(port.Frontends, Frontend{Kind: kind, Addr: addr, Port: p.Port, Routes: routes})
			}
		}
	}
	external := externalRoutes(s, c, from)
	add(ClusterIP, s.ClusterIPs, internalRoutes(s, c, from))
	add(LoadBalancer, s.LoadBalancerIPs, external)
	add(ExternalIP, s.ExternalIPs, external)
	if p.NodePort != 0 {
		port.Frontends = append(port.Frontends, Frontend{Kind: NodePort, Port: p.NodePort, Routes: external})
	}
	sources := sourcesOf(s, key.Family, from)
	for i := range port.Frontends {
		if port.Frontends[i].Kind == LoadBalancer {
			port.Frontends[i].Sources = sources
		}
	}
	port.keepUsed(c)
	if key.Protocol == UDP {
		port.Serving = c.serving
	}
	return port
}

// senders is what is known of who sends, in one family.
type senders struct {
	podsKnown     bool // pods can be told from others
	masqueradeAll bool
	nodeIPs       []netip.Addr
}

// keepUsed takes the lists that a route leads to.
func (p *Port) keepUsed(c choice) {
	for _, f := range p.Frontends {
		for _, r := range f.Routes {
			switch {
			case r.Action != Balance:
			case r.Set == Cluster:
				p.Cluster = c.cluster
			default:
				p.Local = c.local
			}
		}
	}
}

// sourcesOf is nil where a range holds all of the family: that is the same as none. A load balancer's address is often
// one of the node's as well; what the node sends there then has that address as its source, and may pass if the node may.
func sourcesOf(s *Service, family Family, from senders) []netip.Prefix {
	var out []netip.Prefix
	nodeMay := false
	for _, r := range s.SourceRanges {
		if FamilyOf(r.Addr()) != family {
			continue
		}
		if r.Bits() == 0 {
			return nil
		}
		out = append(out, r)
		nodeMay = nodeMay || slices.ContainsFunc(from.nodeIPs, r.Contains)
	}
	for _, addr := range s.LoadBalancerIPs {
		if nodeMay && FamilyOf(addr) == family {
			out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	return out
}

func all(r Route) Routes { return Routes{r, r, r} }

// balance leads to the list of a policy, or nowhere: rejected if nobody serves the port at all.
func balance(local bool, c choice) Route {
	switch {
	case !c.served:
		return Route{Action: Reject}
	case local && len(c.local) == 0:
		return Route{Action: Drop}
	case local:
		return Route{Set: Local}
	}
	return Route{Set: Cluster}
}

// internalRoutes are those of a ClusterIP. What comes from outside the cluster, by a static route to this node, may be
// sent on to another node, whose answer must come back through here: so it is masqueraded, and the node's own
// packets are as well, as their source may be an address that the endpoint can't answer.
func internalRoutes(s *Service, c choice, from senders) Routes {
	routes := all(balance(s.InternalLocal, c))
	for source := range routes {
		isPod := Source(source) == FromPod
		if routes[source].Action == Balance {
			routes[source].Masquerade = from.masqueradeAll || from.podsKnown && !isPod
		}
	}
	return routes
}

// externalRoutes are those of every other address. With policy Local only the node's own endpoints serve, which see the
// client's address; but pods and the node itself are inside already, and are served as from a ClusterIP.
func externalRoutes(s *Service, c choice, from senders) Routes {
	route := balance(s.ExternalLocal, c)
	if !s.ExternalLocal {
		route.Masquerade = route.Action == Balance
		return all(route)
	}
	routes := all(route)
	inside := balance(false, c)
	if from.podsKnown {
		routes[FromPod] = inside
	}
	routes[FromNode] = inside
	routes[FromNode].Masquerade = inside.Action == Balance
	return routes
}
