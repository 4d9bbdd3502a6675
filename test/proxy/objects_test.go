package proxy

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/orlop/orlop/proxy/model"
)

// family is 0 for IPv4 and 1 for IPv6: each scenario is played in both.
type family int

func (f family) model() model.Family { return [...]model.Family{model.IPv4, model.IPv6}[f] }

func (f family) pick(v4, v6 string, n int) string {
	return fmt.Sprintf([...]string{v4, v6}[f], n)
}

// Addresses of Services: the outside host has routes for all of them to the node.
func (f family) cluster(n int) string { return f.pick("10.96.0.%d", "fd00:96::%d", n) }
func (f family) public(n int) string  { return f.pick("198.51.100.%d", "2001:db8:e::%d", n) }

// service is a Service called "web" with the ClusterIP 1 and port 80, which goes to 8080 of its endpoints.
func service(f family, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: f.cluster(1), ClusterIPs: []string{f.cluster(1)},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for _, c := range change {
		c(s)
	}
	return s
}

func named(name string, clusterIP string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Name, s.Spec.ClusterIP, s.Spec.ClusterIPs = name, clusterIP, []string{clusterIP}
	}
}

func protocol(p corev1.Protocol) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports[0].Protocol = p }
}

func nodePort(port int32) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, port }
}

func loadBalancer(addrs ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		for _, a := range addrs {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
	}
}

// both has the Service a ClusterIP in each family, this one first.
func (f family) both(s *corev1.Service) {
	s.Spec.ClusterIPs = []string{f.cluster(1), (1 - f).cluster(1)}
}

func labelled(label, value string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Labels = map[string]string{label: value} }
}

func distribution(how string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.TrafficDistribution = &how }
}

func healthCheck(port int32) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.HealthCheckNodePort = port }
}

func proxied(s *corev1.Service) {
	mode := corev1.LoadBalancerIPModeProxy
	for i := range s.Status.LoadBalancer.Ingress {
		s.Status.LoadBalancer.Ingress[i].IPMode = &mode
	}
}

func external(addrs ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.ExternalIPs = addrs }
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func internalLocal(s *corev1.Service) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = &local
}

func sources(ranges ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = ranges }
}

func affinity(seconds int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

func port(name string, p corev1.Protocol, number int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: name, Protocol: p, Port: number})
	}
}

// slice has the endpoints of a Service. Each is a host, with words about its state behind: "pod-a notready",
// "pod-b terminating" (and still serving), "remote-a gone" (terminating and not serving), "pod-a zone=a node=here" (hints).
func slice(f family, service string, endpoints ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: [...]discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}[f],
	}
	for i, name := range []string{"http", "second"} {
		for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
			number := int32(servedPorts[i])
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &p, Port: &number})
		}
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, endpoint(f, e))
	}
	return s
}

// more is another slice of the same Service.
func more(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	s.Name += "-more"
	return s
}

// unnamed has a Service's port, and a slice's, be without a name.
func unnamed(s *corev1.Service) { s.Spec.Ports[0].Name = "" }

func unnamedSlice(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	none := ""
	s.Ports = s.Ports[:1]
	s.Ports[0].Name = &none // which an API server makes of one that is missing
	return s
}

// names is a slice of host names, which no proxy can use.
func names(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	s.AddressType = discoveryv1.AddressTypeFQDN
	for i := range s.Endpoints {
		s.Endpoints[i].Addresses = []string{"pod.example"}
	}
	return more(s)
}

func endpoint(f family, text string) discoveryv1.Endpoint {
	words := strings.Fields(text)
	h := hostOf(words[0])
	node, ready, serving, terminating := "there", true, true, false
	if h.namespace != "remote" {
		node = "here"
	}
	var hints *discoveryv1.EndpointHints
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		if hints == nil {
			hints = &discoveryv1.EndpointHints{}
		}
		switch name {
		case "notready":
			ready, serving = false, false
		case "terminating":
			ready, terminating = false, true
		case "gone":
			ready, serving, terminating = false, false, true
		case "zone":
			hints.ForZones = append(hints.ForZones, discoveryv1.ForZone{Name: value})
		case "node":
			hints.ForNodes = append(hints.ForNodes, discoveryv1.ForNode{Name: value})
		default:
			panic("endpoint " + text)
		}
	}
	return discoveryv1.Endpoint{
		Addresses: []string{h.addrs[f].String()}, NodeName: &node, Hints: hints,
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
	}
}

// defaultNetwork is that of a node whose pods are told by the range of their addresses.
func defaultNetwork() model.Network {
	return model.Network{
		Families:       []model.Family{model.IPv4, model.IPv6},
		Local:          model.LocalDetection{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/64")}},
		MasqueradeMark: 1 << 14,
		NodeIPs:        hostAddrs("node"),
		NodePorts:      hostAddrs("node"),
	}
}

// stateOf is what the model makes of objects.
func stateOf(network model.Network, objects []runtime.Object) (*model.State, error) {
	state := model.NewState(model.Node{Name: "here", Zone: "a"}, network)
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Service:
			s, err := model.ParseService(o)
			if err != nil {
				return nil, err
			}
			if s != nil {
				state.SetService(s)
			}
		case *discoveryv1.EndpointSlice:
			s, err := model.ParseSlice(o)
			if err != nil {
				return nil, err
			}
			if s != nil {
				state.SetSlice(s)
			}
		}
	}
	state.Commit()
	return state, nil
}
