package model

// HealthCheck is what a load balancer asks a node about a Service with externalTrafficPolicy Local: whether to send
// packets here.
type HealthCheck struct {
	Service Name
	Port    uint16
	// LocalEndpoints is the number of addresses on this node that are ready; one that terminates does not count, so that
	// the load balancer turns away before it is gone (KEP-1669).
	LocalEndpoints int
}

// HealthChecks are those of all Services that ask for one, in no order.
func (s *State) HealthChecks() []HealthCheck {
	out := make([]HealthCheck, 0, len(s.checked))
	for name := range s.checked {
		e := s.services[name]
		out = append(out, HealthCheck{Service: name, Port: e.service.HealthCheckNodePort, LocalEndpoints: e.readyHere(s.node)})
	}
	return out
}

// readyHere counts addresses, not ports: a Pod with two ports is one endpoint.
func (e *entry) readyHere(node Node) int {
	addrs := map[string]bool{}
	for _, slice := range e.slices {
		for _, endpoint := range slice.Endpoints {
			if endpoint.Ready && node.Name != "" && endpoint.Node.Value() == node.Name {
				addrs[endpoint.Addr.String()] = true
			}
		}
	}
	return len(addrs)
}
