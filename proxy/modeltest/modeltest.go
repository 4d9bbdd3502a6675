// Package modeltest makes Services and EndpointSlices at random, for tests of backends: what their rules do must be what
// the model says, whatever the objects are.
package modeltest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"
	"unique"

	"github.com/orlop/orlop/proxy/model"
)

// Cluster makes objects at random, few enough of each kind that they often have to do with each other.
type Cluster struct {
	*rand.Rand
	State    *model.State
	Node     model.Node
	Net      model.Network
	Services map[model.Name]*model.Service
	Slices   map[model.Name]*model.Slice
	hostile  bool
}

// Changes is how many changes a test makes that looks at all rules after each: some, or as many as $ORLOP_TEST_CHANGES says.
func Changes(some int) int {
	if n, err := strconv.Atoi(os.Getenv("ORLOP_TEST_CHANGES")); err == nil {
		return n
	}
	return some
}

// Where packets may be from, by family.
var (
	PodSource     = [2]netip.Addr{netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("fd00:244::5")}
	NodeSource    = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	SecondAddress = [2]netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	OutsideSource = [2]netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8:f::7")}
)

// New is without objects. The same seed makes the same ones.
func New(seed uint64, network model.Network) *Cluster {
	node := model.Node{Name: "here", Zone: "a"}
	return &Cluster{
		Rand: rand.New(rand.NewPCG(seed, 1)), State: model.NewState(node, network), Node: node, Net: network,
		Services: map[model.Name]*model.Service{}, Slices: map[model.Name]*model.Slice{},
	}
}

// Network is one in which all sources can be told apart.
func Network() model.Network {
	return model.Network{
		Families: []model.Family{model.IPv4, model.IPv6},
		Local: model.LocalDetection{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"),
			netip.MustParsePrefix("fd00:244::/64")}},
		MasqueradeMark: 0x4000,
		NodeIPs:        []netip.Addr{NodeSource[0], NodeSource[1]},
		NodePorts:      []netip.Addr{NodeSource[0], NodeSource[1]},
		ServiceCIDRs:   []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/64")},
	}
}

func (c *Cluster) addr(format4, format6 string, family, n int) netip.Addr {
	if family == 0 {
		return netip.MustParseAddr(fmt.Sprintf(format4, n))
	}
	return netip.MustParseAddr(fmt.Sprintf(format6, n))
}

func (c *Cluster) some(n int) bool { return c.IntN(n) == 0 }

// Change makes, changes or deletes an object.
func (c *Cluster) Change(names int) {
	name := model.Name{Namespace: "ns", Name: fmt.Sprintf("svc-%d", c.IntN(names))}
	switch c.IntN(10) {
	case 0:
		c.State.DeleteService(name)
		delete(c.Services, name)
	case 1:
		slice := c.slice(name)
		c.State.DeleteSlice(name, slice.Name)
		delete(c.Slices, slice.Name)
	case 2, 3, 4:
		s := c.service(name)
		c.State.SetService(s)
		c.Services[name] = s
	default:
		slice := c.slice(name)
		c.State.SetSlice(slice)
		c.Slices[slice.Name] = slice
	}
}

func (c *Cluster) service(name model.Name) *model.Service {
	s := &model.Service{Name: name, Created: int64(c.IntN(3)), InternalLocal: c.some(4), ExternalLocal: c.some(2)}
	if c.some(4) {
		s.Affinity = time.Duration(1+c.IntN(3)) * time.Hour
	}
	for family := range 2 {
		if family == 0 || c.some(2) {
			s.ClusterIPs = append(s.ClusterIPs, c.addr("10.96.0.%d", "fd00:96::%x", family, 1+c.IntN(60)))
		}
		if c.some(3) {
			s.ExternalIPs = append(s.ExternalIPs, c.addr("198.51.100.%d", "2001:db8:e::%x", family, 1+c.IntN(8)))
		}
		if c.some(3) {
			s.LoadBalancerIPs = append(s.LoadBalancerIPs, c.addr("198.51.100.%d", "2001:db8:e::%x", family, 1+c.IntN(8)))
		}
	}
	if s.ExternalLocal && c.some(3) {
		s.HealthCheckNodePort = uint16(31000 + c.IntN(4))
	}
	if c.some(3) {
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/25"), netip.MustParsePrefix("10.244.0.0/24"),
			netip.MustParsePrefix("2001:db8:f::/64")}
	}
	if c.some(6) {
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.0.2.0/24")}
	}
	for i := range 1 + c.IntN(2) {
		port := model.ServicePort{Name: fmt.Sprintf("p%d", i), Protocol: []model.Protocol{model.TCP, model.UDP, model.SCTP}[c.IntN(3)], Port: uint16(80 + i)}
		if c.some(2) {
			port.NodePort = uint16(30000 + c.IntN(8))
		}
		s.Ports = append(s.Ports, port)
	}
	return s
}

func (c *Cluster) slice(service model.Name) *model.Slice {
	family := c.IntN(2)
	out := &model.Slice{Service: service, Family: []model.Family{model.IPv4, model.IPv6}[family]}
	out.Name = model.Name{Namespace: "ns", Name: fmt.Sprintf("%s-%d-%d", service.Name, family, c.IntN(2))}
	for i := range 2 {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			out.Ports = append(out.Ports, model.SlicePort{Name: fmt.Sprintf("p%d", i), Protocol: protocol, Port: uint16(8080 + i)})
		}
	}
	for range c.IntN(4) {
		e := model.SliceEndpoint{Addr: c.addr("10.244.1.%d", "fd00:244::1:%x", family, 1+c.IntN(20)), Ready: !c.some(5), Node: unique.Make("there")}
		e.Serving, e.Terminating = e.Ready || c.some(2), !e.Ready && c.some(2)
		if c.some(3) {
			e.Node = unique.Make("here")
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	return out
}

// Targets are all addresses and ports that a Service may have.
func (c *Cluster) Targets(family int) []netip.AddrPort {
	if c.hostile {
		return c.frontends(family)
	}
	var out []netip.AddrPort
	for _, port := range []uint16{80, 81, 82} {
		for n := 1; n <= 61; n++ {
			out = append(out, netip.AddrPortFrom(c.addr("10.96.0.%d", "fd00:96::%x", family, n), port))
		}
		for n := 1; n <= 8; n++ {
			out = append(out, netip.AddrPortFrom(c.addr("198.51.100.%d", "2001:db8:e::%x", family, n), port))
		}
	}
	for port := uint16(30000); port < 30009; port++ {
		out = append(out, netip.AddrPortFrom(NodeSource[family], port), netip.AddrPortFrom(SecondAddress[family], port))
	}
	return out
}

// Rules are what a backend is told that knows of nothing yet.
func (c *Cluster) Rules() model.Rules {
	return model.Rules{Network: c.Net, Ports: slices.Collect(c.State.Ports())}
}

// Fresh is a state that was told what there is now, and nothing of how it came to be.
func (c *Cluster) Fresh() *model.State {
	s := model.NewState(c.Node, c.Net)
	for _, service := range c.Services {
		s.SetService(service)
	}
	for _, slice := range c.Slices {
		s.SetSlice(slice)
	}
	s.Commit()
	return s
}
