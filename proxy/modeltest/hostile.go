package modeltest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/proxy/model"
)

// Hostile are objects that are as large, as long-named or as contradictory as objects can be, or that no API server
// would have taken. A backend must do with them what the model says, and keep the rules of all other Services.
type Hostile struct {
	Name     string
	Services []*corev1.Service
	Slices   []*discoveryv1.EndpointSlice
}

// HostileObjects are all kinds of them.
func HostileObjects() []Hostile {
	return []Hostile{
		manyEndpoints(1000, ""), manyEndpoints(5000, ""), manyEndpoints(1000, corev1.ServiceAffinityClientIP),
		overlapping(), duplicatePorts(), longNames(63), longNames(253), oddNames(), invalidSlices(), affinities(), manySources(2000), invalidServices(),
	}
}

// Cluster parses the objects, and adds a Service that is as Services should be.
func (h Hostile) Cluster(network model.Network) *Cluster {
	c := New(1, network)
	good := apiService("good", 1)
	for _, s := range append(h.Services, good) {
		if parsed, _ := model.ParseService(s); parsed != nil {
			c.State.SetService(parsed)
			c.Services[parsed.Name] = parsed
		}
	}
	for _, s := range append(h.Slices, apiSlice("good", "good", "10.244.1.1")) {
		if parsed, _ := model.ParseSlice(s); parsed != nil {
			c.State.SetSlice(parsed)
			c.Slices[parsed.Name] = parsed
		}
	}
	c.hostile = true
	return c
}

// apiService has the ClusterIP 10.96.1.n and port 80 named p0, and is NodePort 30000 + n.
func apiService(name string, n int, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: fmt.Sprintf("10.96.1.%d", n), ClusterIPs: []string{fmt.Sprintf("10.96.1.%d", n), fmt.Sprintf("fd00:96::1:%x", n)},
			Ports: []corev1.ServicePort{{Name: "p0", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: int32(30000 + n)}},
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

// apiSlice has port 8080 named p0.
func apiSlice(name, service string, addrs ...string) *discoveryv1.EndpointSlice {
	port, portName := int32(8080), "p0"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	for _, a := range addrs {
		if strings.Contains(a, ":") {
			s.AddressType = discoveryv1.AddressTypeIPv6
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

// manyEndpoints are in slices of 100, as the API server makes them.
func manyEndpoints(n int, affinity corev1.ServiceAffinity) Hostile {
	h := Hostile{Name: strings.TrimSpace(fmt.Sprintf("%d endpoints %s", n, affinity))}
	h.Services = append(h.Services, apiService("many", 2, func(s *corev1.Service) { s.Spec.SessionAffinity = affinity }))
	const inSlice = 100
	for first := 0; first < n; first += inSlice {
		var v4, v6 []string
		for i := first; i < first+inSlice; i++ {
			v4 = append(v4, fmt.Sprintf("10.%d.%d.%d", 128+i>>16, i>>8&0xff, i&0xff))
			v6 = append(v6, fmt.Sprintf("fd00:128::%x", i+1))
		}
		h.Slices = append(h.Slices, apiSlice(fmt.Sprintf("many-4-%d", first), "many", v4...), apiSlice(fmt.Sprintf("many-6-%d", first), "many", v6...))
	}
	return h
}

// overlapping Services claim each other's addresses and ports in every way.
func overlapping() Hostile {
	h := Hostile{Name: "overlapping addresses"}
	for n := range 6 {
		name := fmt.Sprintf("svc-%d", n)
		h.Services = append(h.Services, apiService(name, 2+n%3, func(s *corev1.Service) {
			s.CreationTimestamp = metav1.Unix(int64(1000-n), 0)
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Spec.ExternalIPs = []string{"10.96.1.2", "10.96.1.3", "198.51.100.1", "192.0.2.1", "10.244.2.1"}
			for _, ip := range []string{"10.96.1.4", "198.51.100.1", "198.51.100.2", "fd00:96::1:2", "192.0.2.1"} {
				s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
			}
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "p1", Protocol: corev1.ProtocolTCP, Port: 30002, NodePort: 30002}, // one NodePort twice
				corev1.ServicePort{Name: "p2", Protocol: corev1.ProtocolUDP, Port: 80, NodePort: 30002})
			if n%2 == 0 {
				s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24"}
			}
			if n%3 == 0 {
				s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			}
		}))
		// All have the same endpoints, and svc-5 has none.
		if n < 5 {
			h.Slices = append(h.Slices, apiSlice(name, name, "10.244.2.1", "10.244.2.2"), apiSlice(name+"-again", name, "10.244.2.2", "10.244.2.3"))
		}
	}
	return h
}

func duplicatePorts() Hostile {
	port := func(name string, protocol corev1.Protocol, number, nodePort int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: protocol, Port: number, NodePort: nodePort}
	}
	services := []*corev1.Service{
		apiService("same-name", 2, func(s *corev1.Service) {
			s.Spec.Ports = []corev1.ServicePort{port("p0", "TCP", 80, 30002), port("p0", "TCP", 81, 30003), port("p0", "UDP", 80, 30002), port("p0", "", 82, 0)}
		}),
		apiService("same-number", 3, func(s *corev1.Service) {
			s.Spec.Ports = []corev1.ServicePort{port("p0", "TCP", 80, 30004), port("p1", "TCP", 80, 30004), port("", "TCP", 80, 30005)}
		}),
	}
	twice := apiSlice("twice", "same-name", "10.244.2.1", "10.244.2.1")
	more := twice.Ports[0]
	number := int32(8081)
	more.Port = &number
	twice.Ports = append(twice.Ports, twice.Ports[0], more)
	return Hostile{Name: "duplicate ports and port names", Services: services, Slices: []*discoveryv1.EndpointSlice{twice, apiSlice("other", "same-number", "10.244.2.1")}}
}

// longNames have as many bytes as names of this kind can have, and differ in the last one only.
func longNames(most int) Hostile {
	h := Hostile{Name: fmt.Sprintf("names of %d bytes", most)}
	name := func(last string) string { return strings.Repeat("n", most-1) + last }
	for i, last := range []string{"a", "b"} {
		s := apiService(name(last), 2+i, func(s *corev1.Service) {
			s.Namespace = strings.Repeat("x", 63)
			s.Spec.Type, s.Spec.SessionAffinity, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceAffinityClientIP, corev1.ServiceExternalTrafficPolicyLocal
			s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24", "2001:db8:f::/64", "10.244.0.0/16"}
			s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP
			s.Spec.HealthCheckNodePort = int32(31000 + i)
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: fmt.Sprintf("198.51.100.%d", 1+i)}, {IP: fmt.Sprintf("2001:db8:e::%d", 1+i)}}
			second := s.Spec.Ports[0]
			s.Spec.Ports[0].Name, second.Name = strings.Repeat("p", 62)+"a", strings.Repeat("p", 62)+"b"
			second.Port, second.NodePort = 81, second.NodePort+10
			s.Spec.Ports = append(s.Spec.Ports, second)
		})
		h.Services = append(h.Services, s)
		for _, addr := range []string{"10.244.2.1", "fd00:244:ffff:ffff:ffff:ffff:ffff:fff1"} { // the longest addresses, too
			slice := apiSlice(name(last), s.Name, addr, strings.TrimSuffix(addr, "1")+"2")
			slice.Namespace, slice.Name, slice.Ports = s.Namespace, slice.Name+addr, nil
			for _, p := range s.Spec.Ports {
				number, here := int32(65535), "here"
				slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &number})
				slice.Endpoints[0].NodeName = &here
			}
			h.Slices = append(h.Slices, slice)
		}
	}
	return h
}

// oddNames hold what would end a word, a rule or a comment in iptables-restore, nft or a string of C.
func oddNames() Hostile {
	h := Hostile{Name: "names that would break quoting"}
	for i, odd := range []string{`"`, `'`, `\`, "\n-A INPUT -j DROP\n", "`reboot`", "$(reboot)", "a b", "\x00", "ü\xff", "--", "!", "COMMIT", "#", ";", "/../", "@", "{ }", "%s%n", ":x"} {
		name := fmt.Sprintf("odd-%d%s", i, odd)
		h.Services = append(h.Services, apiService(name, 2+i, func(s *corev1.Service) {
			s.Spec.Type, s.Spec.SessionAffinity = corev1.ServiceTypeLoadBalancer, corev1.ServiceAffinityClientIP
			s.Spec.Ports[0].Name = odd
			s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: fmt.Sprintf("198.51.100.%d", 1+i)}}
		}))
		slice := apiSlice(name, name, "10.244.2.1", "10.244.2.2")
		slice.Ports[0].Name = &odd
		if i%3 > 0 {
			h.Slices = append(h.Slices, slice)
		}
	}
	return h
}

func invalidSlices() Hostile {
	h := Hostile{Name: "invalid slices", Services: []*corev1.Service{apiService("web", 2)}}
	add := func(change func(*discoveryv1.EndpointSlice), addrs ...string) {
		s := apiSlice(fmt.Sprintf("web-%d", len(h.Slices)), "web", addrs...)
		change(s)
		h.Slices = append(h.Slices, s)
	}
	none := func(*discoveryv1.EndpointSlice) {}
	zero, large, negative := int32(0), int32(65536), int32(-1)
	strange := corev1.Protocol("ICMP")
	add(none, "10.244.2.1")
	add(func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeIPv6 }, "10.244.2.2", "::ffff:10.244.2.3")
	add(func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeIPv4 }, "fd00:244::2")
	add(func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeFQDN }, "example.org")
	add(func(s *discoveryv1.EndpointSlice) { s.AddressType = "" }, "10.244.2.4")
	add(none, "127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "junk", "", "10.244.2.256", "10.244.2.5/24", "10.244.2.5:80", "1.2.3")
	add(none, "::1", "::", "fe80::1", "fe80::1%eth0", "ff02::1", "fd00::1%x")
	add(func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses = nil }, "10.244.2.6")
	add(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = nil }, "10.244.2.7")
	add(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = &zero }, "10.244.2.8")
	add(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = &large }, "10.244.2.9")
	add(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = &negative }, "10.244.2.10")
	add(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Name = nil }, "10.244.2.11")
	add(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Protocol = &strange }, "10.244.2.12")
	add(func(s *discoveryv1.EndpointSlice) { s.Ports = nil }, "10.244.2.13")
	add(func(s *discoveryv1.EndpointSlice) { s.Labels = nil }, "10.244.2.14")
	add(none, "010.244.002.015") // an old object's, which the API server keeps
	return h
}

func affinities() Hostile {
	h := Hostile{Name: "timeouts of affinity at their limits"}
	for i, seconds := range []int32{1, 86400, 86401, 1<<31 - 1, 0, -1} {
		name := fmt.Sprintf("sticky-%d", i)
		h.Services = append(h.Services, apiService(name, 2+i, func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}))
		h.Slices = append(h.Slices, apiSlice(name, name, "10.244.2.1", "10.244.2.2"))
	}
	return h
}

// manySources has some ranges twice, some that hold others, and some that are none.
func manySources(n int) Hostile {
	s := apiService("fenced", 2, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}, {IP: "2001:db8:e::1"}}
		s.Spec.LoadBalancerSourceRanges = []string{"junk", "10.0.0.0", "10.0.0.0/33", "fd00::/-1", "", "203.0.113.0/24", "203.0.113.7/32", " 203.0.113.7/32 ", "203.0.113.99/24"}
		for i := range n {
			s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, fmt.Sprintf("172.%d.%d.0/24", 16+i>>8, i&0xff), fmt.Sprintf("2001:db8:%x::/48", 0x1000+i))
		}
	})
	return Hostile{Name: fmt.Sprintf("%d loadBalancerSourceRanges", 2*n), Services: []*corev1.Service{s}, Slices: []*discoveryv1.EndpointSlice{apiSlice("fenced", "fenced", "10.244.2.1")}}
}

func invalidServices() Hostile {
	h := Hostile{Name: "invalid Services"}
	add := func(change func(*corev1.Service)) {
		n := 2 + len(h.Services)
		name := fmt.Sprintf("bad-%d", n)
		h.Services = append(h.Services, apiService(name, n, change))
		h.Slices = append(h.Slices, apiSlice(name, name, "10.244.2.1"))
	}
	add(func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"junk", "10.96.1.2", "10.96.1.20", "127.0.0.1"} })
	add(func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "not an address", nil })
	add(func(s *corev1.Service) {
		s.Spec.ExternalIPs = []string{"0.0.0.0", "127.0.0.1", "::1", "224.0.0.1", "::", "198.51.100.1", "198.51.100.1"}
	})
	add(func(s *corev1.Service) { s.Spec.Ports[0].Port = 0 })
	add(func(s *corev1.Service) { s.Spec.Ports[0].Port, s.Spec.Ports[0].NodePort = 65535, 65535 })
	add(func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 70000 })
	add(func(s *corev1.Service) { s.Spec.Ports[0].Protocol = "ICMP" })
	add(func(s *corev1.Service) { s.Spec.Ports = nil })
	add(func(s *corev1.Service) {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{Hostname: "lb.example"}, {IP: "?"}, {}}
	})
	add(func(s *corev1.Service) { s.Namespace, s.Name = "", "" })
	return h
}

// frontends are all addresses at which Services are reached, and some at which none is.
func (c *Cluster) frontends(family int) []netip.AddrPort {
	want := c.Net.Families[family]
	known := map[netip.AddrPort]bool{}
	for port := range c.State.Ports() {
		for _, f := range port.Frontends {
			switch {
			case port.Key.Family != want:
			case f.Kind == model.NodePort:
				known[netip.AddrPortFrom(NodeSource[family], f.Port)] = true
				known[netip.AddrPortFrom(SecondAddress[family], f.Port)] = true
			default:
				known[netip.AddrPortFrom(f.Addr, f.Port)] = true
				known[netip.AddrPortFrom(f.Addr, 79)] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(known), netip.AddrPort.Compare)
}
