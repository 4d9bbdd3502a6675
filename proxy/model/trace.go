package model

import (
	"net/netip"
	"slices"
)

// Packet is the first one of a connection, as it reaches this node's rules.
type Packet struct {
	// From is what the node takes the sender for, SourceAddr its address.
	From       Source
	SourceAddr netip.Addr
	To         netip.AddrPort
	Protocol   Protocol
	// ToNode is true if To is an address of this node at which NodePorts are served.
	ToNode bool
}

// Outcome is where a packet goes. The zero value, without a Port, is that no Service has to do with it.
type Outcome struct {
	Port     *Port
	Frontend Frontend
	Route    Route
	// Endpoints are those of which Balance takes one. With Masquerade in Route or if the endpoint itself is the sender,
	// it sees an address of the node as the source.
	Endpoints []Endpoint
	// Refused is true for a packet to a LoadBalancer address from a source that may not use it; it is dropped.
	Refused bool
}

// Trace tells what happens to a packet. Addresses of Services go before NodePorts.
func (s *State) Trace(p Packet) Outcome {
	key := claimKey{family: FamilyOf(p.To.Addr()), addr: p.To.Addr(), protocol: p.Protocol, port: p.To.Port()}
	claims := s.claims[key]
	if len(claims) == 0 && p.ToNode {
		key.addr = netip.Addr{}
		claims = s.claims[key]
	}
	if len(claims) == 0 {
		return Outcome{}
	}
	port := s.Port(claims[0].key)
	at := slices.IndexFunc(port.Frontends, func(f Frontend) bool { return f.Addr == key.addr && f.Port == key.port })
	out := Outcome{Port: port, Frontend: port.Frontends[at]}
	if out.Refused = !allowed(out.Frontend, p.SourceAddr); out.Refused {
		out.Route = Route{Action: Drop}
		return out
	}
	if out.Route = out.Frontend.Routes[p.From]; out.Route.Action == Balance {
		out.Endpoints = port.Endpoints(out.Route.Set)
	}
	return out
}

func allowed(f Frontend, source netip.Addr) bool {
	return len(f.Sources) == 0 || slices.ContainsFunc(f.Sources, func(r netip.Prefix) bool { return r.Contains(source) })
}

// Port is the port of this key as the last Commit left it, or nil.
func (s *State) Port(key PortKey) *Port {
	e := s.services[key.Service]
	if e == nil {
		return nil
	}
	at := slices.IndexFunc(e.ports, func(p *Port) bool { return p.Key == key })
	if at < 0 {
		return nil
	}
	return e.ports[at]
}
