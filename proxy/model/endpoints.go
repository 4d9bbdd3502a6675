package model

import (
	"net/netip"
	"slices"
	"unique"
)

// Node is what the rules need of this node.
type Node struct {
	Name string
	// Zone is the label topology.kubernetes.io/zone.
	Zone string
}

// portEndpoints collects the endpoints of a port from a Service's slices. An endpoint that moves from slice to slice is
// in both for a while, and a new Pod may have the address of one that is about to end: what is not terminating counts.
func portEndpoints(in []*Slice, key PortKey) map[netip.AddrPort]SliceEndpoint {
	out := map[netip.AddrPort]SliceEndpoint{}
	for _, slice := range in {
		if slice.Family != key.Family {
			continue
		}
		for _, port := range slice.Ports {
			if port.Name != key.Port || port.Protocol != key.Protocol {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				addr := netip.AddrPortFrom(endpoint.Addr, port.Port)
				if have, twice := out[addr]; !twice || better(endpoint, have) {
					out[addr] = endpoint
				}
			}
		}
	}
	return out
}

// better decides by what the endpoints are, and not by the order in which their slices came, so that the same objects
// always give the same rules.
func better(a, b SliceEndpoint) bool {
	if a.Terminating != b.Terminating {
		return b.Terminating
	}
	if a.Ready != b.Ready {
		return a.Ready
	}
	return a.Node.Value() < b.Node.Value()
}

// choice is which endpoints serve a port here.
type choice struct {
	cluster, local []Endpoint
	// served is true if anybody serves the port anywhere: a packet that finds nobody here is then dropped, not rejected.
	served bool
	// serving are all that serve, in their order.
	serving []netip.AddrPort
	// topology is by which hint the endpoints were chosen: "", PreferSameNode or PreferSameZone.
	topology string
}

func usableAfterAll(e SliceEndpoint) bool { return e.Serving && e.Terminating }

// choose applies readiness (KEP-1669: endpoints that are terminating but still serve are for when none is ready), and
// topology (KEP-2433, KEP-4444) to the endpoints for policy Cluster; those for policy Local are the node's.
func choose(in map[netip.AddrPort]SliceEndpoint, node Node) choice {
	self, zone := unique.Make(node.Name), unique.Make(node.Zone)
	onNode := func(e SliceEndpoint) bool { return node.Name != "" && e.Node == self }
	pick := func(want func(SliceEndpoint) bool) []Endpoint {
		var out []Endpoint
		for addr, e := range in {
			if want(e) {
				out = append(out, Endpoint{Addr: addr, OnNode: onNode(e)})
			}
		}
		slices.SortFunc(out, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
		return out
	}
	ready := func(e SliceEndpoint) bool { return e.Ready }
	var c choice
	hinted := ready
	c.topology, hinted = byHints(in, self, zone)
	if c.cluster = pick(hinted); len(c.cluster) == 0 {
		c.cluster = pick(usableAfterAll)
	}
	if c.local = pick(func(e SliceEndpoint) bool { return onNode(e) && ready(e) }); len(c.local) == 0 {
		c.local = pick(func(e SliceEndpoint) bool { return onNode(e) && usableAfterAll(e) })
	}
	c.served = len(c.cluster) > 0
	for _, e := range pick(func(e SliceEndpoint) bool { return e.Serving }) {
		c.serving = append(c.serving, e.Addr)
	}
	return c
}

// The values of topology, as in a Service's trafficDistribution.
const (
	sameNode = "PreferSameNode"
	sameZone = "PreferSameZone"
)

// byHints takes hints in account only if all ready endpoints have them and one is meant for us: an update that is still
// under way, or a zone without endpoints, must not leave clients without service.
func byHints(in map[netip.AddrPort]SliceEndpoint, self, zone unique.Handle[string]) (string, func(SliceEndpoint) bool) {
	forNode := func(e SliceEndpoint) bool { return e.Ready && slices.Contains(e.Nodes, self) }
	forZone := func(e SliceEndpoint) bool { return e.Ready && slices.Contains(e.Zones, zone) }
	allNodes, allZones, anyNode, anyZone := true, true, false, false
	for _, e := range in {
		if !e.Ready {
			continue
		}
		allNodes, allZones = allNodes && len(e.Nodes) > 0, allZones && len(e.Zones) > 0
		anyNode, anyZone = anyNode || forNode(e), anyZone || forZone(e)
	}
	switch {
	case allNodes && anyNode:
		return sameNode, forNode
	case allZones && anyZone:
		return sameZone, forZone
	}
	return "", func(e SliceEndpoint) bool { return e.Ready }
}
