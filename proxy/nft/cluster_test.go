package nft

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unique"

	"github.com/orlop/orlop/proxy/model"
)

// cluster makes objects at random, few enough of each kind that they often have to do with each other.
type cluster struct {
	*rand.Rand
	state    *model.State
	network  model.Network
	services map[model.Name]*model.Service
	slices   map[model.Name]*model.Slice
}

var (
	podSource     = [2]netip.Addr{netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("fd00:244::5")}
	nodeSource    = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	secondAddress = [2]netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
	outsideSource = [2]netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8:f::7")}
)

func newCluster(seed uint64, network model.Network) *cluster {
	return &cluster{
		Rand: rand.New(rand.NewPCG(seed, 1)), state: model.NewState(model.Node{Name: "here", Zone: "a"}, network), network: network,
		services: map[model.Name]*model.Service{}, slices: map[model.Name]*model.Slice{},
	}
}

func testNetwork() model.Network {
	return model.Network{
		Families: []model.Family{model.IPv4, model.IPv6},
		Local: model.LocalDetection{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"),
			netip.MustParsePrefix("fd00:244::/64")}},
		MasqueradeMark: 0x4000,
		NodeIPs:        []netip.Addr{nodeSource[0], nodeSource[1]},
		NodePorts:      []netip.Addr{nodeSource[0], nodeSource[1]},
		ServiceCIDRs:   []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/64")},
	}
}

func (c *cluster) addr(format4, format6 string, family, n int) netip.Addr {
	if family == 0 {
		return netip.MustParseAddr(fmt.Sprintf(format4, n))
	}
	return netip.MustParseAddr(fmt.Sprintf(format6, n))
}

func (c *cluster) some(n int) bool { return c.IntN(n) == 0 }

// change makes, changes or deletes an object.
func (c *cluster) change(names int) {
	name := model.Name{Namespace: "ns", Name: fmt.Sprintf("svc-%d", c.IntN(names))}
	switch c.IntN(10) {
	case 0:
		c.state.DeleteService(name)
		delete(c.services, name)
	case 1:
		slice := c.slice(name)
		c.state.DeleteSlice(name, slice.Name)
		delete(c.slices, slice.Name)
	case 2, 3, 4:
		s := c.service(name)
		c.state.SetService(s)
		c.services[name] = s
	default:
		slice := c.slice(name)
		c.state.SetSlice(slice)
		c.slices[slice.Name] = slice
	}
}

func (c *cluster) service(name model.Name) *model.Service {
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

func (c *cluster) slice(service model.Name) *model.Slice {
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

// targets are all addresses and ports that a Service may have.
func (c *cluster) targets(family int) []netip.AddrPort {
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
		out = append(out, netip.AddrPortFrom(nodeSource[family], port), netip.AddrPortFrom(secondAddress[family], port))
	}
	return out
}

// agree sends each packet through the model and through the rules that the kernel has.
func (c *cluster) agree(t *testing.T) {
	t.Helper()
	for family, f := range c.network.Families {
		table, err := Read(f)
		if err != nil {
			t.Fatal(err)
		}
		clusterIPs := map[netip.Addr]bool{}
		for port := range c.state.Ports() {
			for _, f := range port.Frontends {
				if f.Kind == model.ClusterIP {
					clusterIPs[f.Addr] = true
				}
			}
		}
		for _, to := range c.targets(family) {
			for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
				for source, in := range []string{"cni0", "", "eth0"} {
					p := Packet{To: to, Protocol: protocol, In: in}
					addr := [][2]netip.Addr{podSource, nodeSource, outsideSource}[source][family]
					p.From = netip.AddrPortFrom(addr, 40000)
					p.Local = func(a netip.Addr) bool { return a == nodeSource[family] || a == secondAddress[family] }
					want := c.expect(model.Packet{From: model.Source(source), SourceAddr: addr, To: to, Protocol: protocol,
						ToNode: c.network.AllNodePorts && p.Local(to.Addr()) || slices.Contains(c.network.NodePorts, to.Addr())}, clusterIPs)
					got, err := table.Trace(p)
					if err != nil {
						t.Fatalf("%v to %v: %v", p.From, to, err)
					}
					if fmt.Sprint(got) != fmt.Sprint(want) {
						t.Fatalf("%v to %v %v (%v): the kernel's rules say %+v, the model says %+v: %+v", p.From, to, protocol, in, got, want,
							c.state.Trace(model.Packet{From: model.Source(source), SourceAddr: addr, To: to, Protocol: protocol}))
					}
				}
			}
		}
	}
}

func (c *cluster) expect(p model.Packet, clusterIPs map[netip.Addr]bool) Outcome {
	o := c.state.Trace(p)
	var out Outcome
	switch {
	case o.Port == nil && clusterIPs[p.To.Addr()]:
		out.Rejected = true
	case o.Port == nil:
		out.Dropped = slices.ContainsFunc(c.network.ServiceCIDRs, func(r netip.Prefix) bool { return r.Contains(p.To.Addr()) })
	case o.Route.Action == model.Reject:
		out.Rejected = true
	case o.Route.Action == model.Drop:
		out.Dropped = true
	default:
		out.Masquerade = o.Route.Masquerade
		for _, e := range o.Endpoints {
			out.Endpoints = append(out.Endpoints, e.Addr)
		}
	}
	return out
}
