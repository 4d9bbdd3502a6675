package model

import (
	"maps"
	"net/netip"
)

// HealthCheck is what a load balancer asks a node about a Service with externalTrafficPolicy Local: whether to send
// packets here.
type HealthCheck struct {
	Service Name
	Port    uint16
	// LocalEndpoints is the number of addresses on this node that are ready, in each family that the Service has: a Pod with
	// an address in both counts once for whoever asks. One that terminates does not count, so that the load balancer turns
	// away before it is gone (KEP-1669).
	LocalEndpoints map[Family]int
}

func (h HealthCheck) equal(o HealthCheck) bool {
	return h.Service == o.Service && h.Port == o.Port && maps.Equal(h.LocalEndpoints, o.LocalEndpoints)
}

// HealthChecks are those of all Services that ask for one, in no order, as the last Commit left them. It is the same slice
// until one of them is another.
func (s *State) HealthChecks() []HealthCheck {
	if s.checks == nil {
		s.checks = make([]HealthCheck, 0, len(s.checked))
		for _, check := range s.checked {
			s.checks = append(s.checks, check)
		}
	}
	return s.checks
}

// recheck counts the endpoints of a Service anew.
func (s *State) recheck(name Name, e *entry) {
	before, had := s.checked[name]
	if e.service == nil || e.service.HealthCheckNodePort == 0 {
		if had {
			delete(s.checked, name)
			s.checks = nil
		}
		return
	}
	now := HealthCheck{Service: name, Port: e.service.HealthCheckNodePort, LocalEndpoints: map[Family]int{}}
	for _, addr := range e.service.ClusterIPs {
		if family := FamilyOf(addr); s.has(family) {
			now.LocalEndpoints[family] = e.readyHere(s.node, family)
		}
	}
	if !had || !now.equal(before) {
		s.checked[name] = now
		s.checks = nil
	}
}

func (s *State) has(family Family) bool {
	_, ours := s.senders[family]
	return ours
}

// readyHere counts addresses, not ports: a Pod with two ports is one endpoint.
func (e *entry) readyHere(node Node, family Family) int {
	addrs := map[netip.Addr]bool{}
	for _, slice := range e.slices {
		for _, endpoint := range slice.Endpoints {
			if slice.Family == family && endpoint.Ready && node.Name != "" && endpoint.Node.Value() == node.Name {
				addrs[endpoint.Addr] = true
			}
		}
	}
	return len(addrs)
}
