// Package model says what a node does with packets to Services. Services, EndpointSlices and the node go in; for each
// port of each Service the addresses that it is reached at, the endpoints that may serve it and the rules of who gets
// where come out, and backends make the kernel do so. It is a pure function of what it is told: no kernel, no files, no
// clock.
//
// A change costs what the change is: [State] computes anew only the Services that a change touches, and tells backends
// which ports differ from before.
//
// The rules are those of the Service API and of KEP-1669 (terminating endpoints), KEP-2086 (internalTrafficPolicy),
// KEP-2433 and KEP-4444 (topology), KEP-1860 (ipMode).
package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Family is a version of the Internet Protocol.
type Family uint8

// The families; a dual-stack Service has ports in both.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// FamilyOf is the family of an address. IPv4-mapped IPv6 addresses do not occur: all parsers here unmap them.
func FamilyOf(addr netip.Addr) Family {
	if addr.Is4() {
		return IPv4
	}
	return IPv6
}

// Protocol is a transport protocol, by its IANA number.
type Protocol uint8

// The protocols that Services have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the lower-case name, as nftables and iptables write it.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// Name is a Service's namespace and name.
type Name struct{ Namespace, Name string }

func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Compare orders names by namespace, then name.
func (n Name) Compare(o Name) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), strings.Compare(n.Name, o.Name))
}

// PortKey names one port of a Service in one family. A port's name alone does not do: ports may share a name as long as
// their protocols differ.
type PortKey struct {
	Service  Name
	Port     string // the port's name, empty for a single unnamed port
	Protocol Protocol
	Family   Family
}

// String is namespace/name:port, the form in which kube-proxy's users know ports, without the family.
func (k PortKey) String() string {
	if k.Port == "" {
		return k.Service.String()
	}
	return k.Service.String() + ":" + k.Port
}

// Compare orders keys by Service, port, protocol and family.
func (k PortKey) Compare(o PortKey) int {
	return cmp.Or(k.Service.Compare(o.Service), strings.Compare(k.Port, o.Port),
		cmp.Compare(k.Protocol, o.Protocol), cmp.Compare(k.Family, o.Family))
}

// Port is one port of one Service in one family: all that a backend needs to know of it. It is never changed after it
// was made; a change makes a new one.
type Port struct {
	Key PortKey
	// Frontends are where the port is reached. Those that another, older Service has already are left out.
	Frontends []Frontend
	// Cluster are the endpoints for traffic under policy Cluster, Local those for policy Local: of this node only. A list
	// that no frontend uses is empty. Both are in the order of their addresses and hold nothing twice.
	Cluster, Local []Endpoint
	// Serving are all endpoints in the cluster that serve, of a UDP port: a flow that goes to another one is lost, and must be
	// forgotten. Policies and hints don't count, as a change of these leaves connections alone.
	Serving []netip.AddrPort
	// HealthCheckNodePort is where a load balancer asks for the Service's health, on this node itself; 0 if it doesn't. A
	// backend that can lets packets to it pass whatever else is refused.
	HealthCheckNodePort uint16
	// Affinity is how long a client's address keeps its endpoint after its last connection; 0 is without affinity.
	Affinity time.Duration
}

// Equal tells whether packets are treated alike.
func (p *Port) Equal(o *Port) bool {
	return p.Key == o.Key && p.Affinity == o.Affinity && p.HealthCheckNodePort == o.HealthCheckNodePort && slices.Equal(p.Cluster, o.Cluster) &&
		slices.Equal(p.Local, o.Local) && slices.Equal(p.Serving, o.Serving) && slices.EqualFunc(p.Frontends, o.Frontends, Frontend.Equal)
}

// Endpoints is one of the port's lists.
func (p *Port) Endpoints(set Set) []Endpoint {
	if set == Local {
		return p.Local
	}
	return p.Cluster
}

// Endpoint is where packets may end.
type Endpoint struct {
	Addr netip.AddrPort
	// OnNode is true for an endpoint on this node: it may reach itself through a Service, so that such a connection must
	// be masqueraded.
	OnNode bool
}

// Kind is the kind of a frontend's address.
type Kind uint8

// The kinds, in the order in which they are told.
const (
	ClusterIP Kind = iota
	LoadBalancer
	ExternalIP
	NodePort
)

func (k Kind) String() string {
	return [...]string{"ClusterIP", "LoadBalancer", "ExternalIP", "NodePort"}[k]
}

// Frontend is an address and port at which a Service is reached.
type Frontend struct {
	Kind Kind
	// Addr is invalid for a NodePort: that is reached at all addresses of the node that Options of the backend name.
	Addr netip.Addr
	Port uint16
	// Routes says what happens to a packet, by where it is from.
	Routes Routes
	// Sources are the only ones that may reach a LoadBalancer frontend (loadBalancerSourceRanges), whoever asks: pods and
	// the node too. Empty: all may.
	Sources []netip.Prefix
}

// Equal tells whether packets are treated alike.
func (f Frontend) Equal(o Frontend) bool {
	return f.Kind == o.Kind && f.Addr == o.Addr && f.Port == o.Port && f.Routes == o.Routes && slices.Equal(f.Sources, o.Sources)
}

// Source says where a packet is from. Order matters: the first that fits is meant.
type Source uint8

// The sources.
const (
	FromPod     Source = iota // what the detection of local traffic takes for a pod: see DetectLocal
	FromNode                  // an address of this node
	FromOutside               // all else
	sources
)

func (s Source) String() string { return [...]string{"pod", "node", "outside"}[s] }

// Routes is what happens to a packet for each Source.
type Routes [sources]Route

// Route is what happens to a packet.
type Route struct {
	Action Action
	// Set is the list of endpoints of which Balance takes one.
	Set Set
	// Masquerade replaces the packet's source by an address of the node.
	Masquerade bool
}

// Action is the kind of a route.
type Action uint8

// The actions. Reject answers with ICMP port unreachable: nobody serves this at all. Drop is silent: somebody does, but
// not here, so that a load balancer in front shall ask another node.
const (
	Balance Action = iota
	Reject
	Drop
)

func (a Action) String() string { return [...]string{"balance", "reject", "drop"}[a] }

// Set is one of a port's lists of endpoints.
type Set uint8

// The lists.
const (
	Cluster Set = iota
	Local
)

func (s Set) String() string { return [...]string{"Cluster", "Local"}[s] }

// Change is a port that is not as it was: Old is nil for one that is new, New for one that is gone.
type Change struct{ Old, New *Port }

// Key is the key of the port that changed.
func (c Change) Key() PortKey {
	if c.New != nil {
		return c.New.Key
	}
	return c.Old.Key
}
