package model

import (
	"errors"
	"fmt"
	"net/netip"
	"unique"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// Slice is what the rules need of an EndpointSlice object.
type Slice struct {
	Name      Name // of the slice
	Service   Name
	Family    Family
	Ports     []SlicePort
	Endpoints []SliceEndpoint
}

// SlicePort is a port that all endpoints of a slice have.
type SlicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// SliceEndpoint is an endpoint and what is known of its state.
type SliceEndpoint struct {
	Addr                        netip.Addr
	Ready, Serving, Terminating bool
	// Node is empty where the endpoint is of no known node. Names repeat in all slices, so that each is kept once.
	Node unique.Handle[string]
	// Zones and Nodes are the hints for whom the endpoint is meant.
	Zones, Nodes []unique.Handle[string]
	// Pod is the name of the Pod behind the endpoint, for people; empty where it is something else.
	Pod string
}

// ParseSlice takes from an EndpointSlice what the rules need. It is nil for one of no Service and for one of host names.
// The error tells each value that can't be used, by its field; what is returned is without these.
func ParseSlice(in *discoveryv1.EndpointSlice) (*Slice, error) {
	service := in.Labels[discoveryv1.LabelServiceName]
	if service == "" || in.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, nil
	}
	p := parser{}
	out := &Slice{
		Name:    Name{Namespace: in.Namespace, Name: in.Name},
		Service: Name{Namespace: in.Namespace, Name: service},
		Family:  IPv4,
	}
	if in.AddressType == discoveryv1.AddressTypeIPv6 {
		out.Family = IPv6
	}
	for i, port := range in.Ports {
		if parsed, ok := p.slicePort(fmt.Sprintf("ports[%d]", i), port); ok {
			out.Ports = append(out.Ports, parsed)
		}
	}
	for i := range in.Endpoints {
		if parsed, ok := p.sliceEndpoint(fmt.Sprintf("endpoints[%d].addresses", i), out.Family, &in.Endpoints[i]); ok {
			out.Endpoints = append(out.Endpoints, parsed)
		}
	}
	if err := errors.Join(p.errs...); err != nil {
		return out, fmt.Errorf("endpoint slice %s: %w", out.Name, err)
	}
	return out, nil
}

// slicePort leaves out a port without a number: that is a headless Service's.
func (p *parser) slicePort(field string, in discoveryv1.EndpointPort) (SlicePort, bool) {
	protocol, ok := parseProtocol(in.Protocol)
	if !ok {
		p.refuse(field+".protocol", *in.Protocol, "is not TCP, UDP or SCTP")
		return SlicePort{}, false
	}
	if in.Port == nil {
		return SlicePort{}, false
	}
	if *in.Port < 1 || *in.Port > 65535 {
		p.refuse(field+".port", *in.Port, "is not within 1 to 65535")
		return SlicePort{}, false
	}
	return SlicePort{Name: value(in.Name), Protocol: protocol, Port: uint16(*in.Port)}, true
}

// value is what a pointer of the API means: empty where there is none.
func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// sliceEndpoint takes the first address; more have no meaning (see the API's description of addresses).
func (p *parser) sliceEndpoint(field string, family Family, in *discoveryv1.Endpoint) (SliceEndpoint, bool) {
	if len(in.Addresses) == 0 {
		p.refuse(field, "", "is empty")
		return SliceEndpoint{}, false
	}
	addr, err := parseAddr(in.Addresses[0])
	switch {
	case err != nil:
		p.refuse(field, in.Addresses[0], "is not an IP address")
		return SliceEndpoint{}, false
	case FamilyOf(addr) != family:
		p.refuse(field, in.Addresses[0], "is not an "+family.String()+" address")
		return SliceEndpoint{}, false
	case !usable(addr) || addr.IsLinkLocalUnicast(): // whoever may write slices could reach the node's own servers, or a cloud's
		p.refuse(field, in.Addresses[0], "is unspecified, loopback, link-local or multicast")
		return SliceEndpoint{}, false
	}
	out := SliceEndpoint{
		Addr:        addr,
		Ready:       in.Conditions.Ready == nil || *in.Conditions.Ready,
		Serving:     in.Conditions.Serving == nil || *in.Conditions.Serving,
		Terminating: in.Conditions.Terminating != nil && *in.Conditions.Terminating,
		Node:        unique.Make(value(in.NodeName)),
	}
	if in.TargetRef != nil && in.TargetRef.Kind == "Pod" {
		out.Pod = in.TargetRef.Name
	}
	if in.Hints != nil {
		for _, zone := range in.Hints.ForZones {
			out.Zones = append(out.Zones, unique.Make(zone.Name))
		}
		for _, node := range in.Hints.ForNodes {
			out.Nodes = append(out.Nodes, unique.Make(node.Name))
		}
	}
	return out, true
}
