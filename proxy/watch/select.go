package watch

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/orlop/orlop/proxy/model"
)

// member is a pod that may be an endpoint: what the rules need of it.
type member struct {
	labels             labels.Set
	addrs              []netip.Addr
	ports              []namedPort
	node               string
	ready, terminating bool
}

type namedPort struct {
	name     string
	protocol corev1.Protocol
	port     int32
}

// members are pods by namespace, then by UID: a pod that ends may have the name of the one that follows it.
type members map[string]map[string]named

type named struct {
	name string
	member
}

// reduceMember is false for a pod that is no endpoint: one that has ended, or has no address yet.
func reduceMember(p *corev1.Pod) (named, bool) {
	out := named{name: p.Name, member: member{
		labels: p.Labels, node: p.Spec.NodeName, terminating: p.DeletionTimestamp != nil, addrs: podAddrs(p), ports: namedPorts(p),
	}}
	for _, c := range p.Status.Conditions {
		out.ready = out.ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	}
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	return out, !ended && len(out.addrs) > 0
}

func podAddrs(p *corev1.Pod) []netip.Addr {
	all := p.Status.PodIPs
	if len(all) == 0 {
		all = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	var out []netip.Addr
	for _, ip := range all {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, addr.Unmap())
		}
	}
	return out
}

// namedPorts are those of containers, then those of sidecars (KEP-753), which is the order in which names are looked up.
func namedPorts(p *corev1.Pod) []namedPort {
	containers := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	var out []namedPort
	for _, c := range containers {
		for _, port := range c.Ports {
			if port.Name != "" {
				out = append(out, namedPort{port.Name, cmp.Or(port.Protocol, corev1.ProtocolTCP), port.ContainerPort})
			}
		}
	}
	return out
}

// selecting is a Service whose endpoints are pods: what is needed to find them.
type selecting struct {
	service         model.Name
	selector        labels.Selector
	families        []model.Family
	ports           []corev1.ServicePort
	publishNotReady bool
}

func selects(in *corev1.Service, service *model.Service) *selecting {
	s := &selecting{
		service: service.Name, selector: labels.SelectorFromSet(in.Spec.Selector),
		ports: in.Spec.Ports, publishNotReady: in.Spec.PublishNotReadyAddresses,
	}
	for _, addr := range service.ClusterIPs {
		s.families = append(s.families, model.FamilyOf(addr))
	}
	return s
}

// slices are what the EndpointSlice controller would make of the pods that the Service selects: one slice for each family
// and each set of ports, which differ where a named port has another number in another pod.
func (s *selecting) slices(pods members) []*reduced[model.Slice] {
	groups := map[string]*discoveryv1.EndpointSlice{}
	for uid, p := range pods[s.service.Namespace] {
		if !s.selector.Matches(p.labels) {
			continue
		}
		ports := s.portsOf(p.member)
		for _, family := range s.families {
			at := slices.IndexFunc(p.addrs, func(a netip.Addr) bool { return model.FamilyOf(a) == family })
			if at < 0 {
				continue
			}
			name := s.sliceName(family, ports)
			if groups[name] == nil {
				groups[name] = s.emptySlice(name, family, ports)
			}
			groups[name].Endpoints = append(groups[name].Endpoints, s.endpoint(uid, p, p.addrs[at]))
		}
	}
	var out []*reduced[model.Slice]
	for _, group := range groups {
		// The order of pods in memory is none.
		slices.SortFunc(group.Endpoints, func(a, b discoveryv1.Endpoint) int {
			return cmp.Or(cmp.Compare(a.Addresses[0], b.Addresses[0]), cmp.Compare(a.TargetRef.UID, b.TargetRef.UID))
		})
		if parsed, _ := model.ParseSlice(group); parsed != nil { // a pod on loopback or the like is no endpoint
			out = append(out, &reduced[model.Slice]{name: parsed.Name, value: parsed})
		}
	}
	return out
}

// sliceName can't be that of a slice in a file: names of objects have no slash.
func (s *selecting) sliceName(family model.Family, ports []discoveryv1.EndpointPort) string {
	var name strings.Builder
	fmt.Fprintf(&name, "%s/%s", s.service.Name, family)
	for _, p := range ports {
		fmt.Fprintf(&name, "/%s:%d", *p.Name, *p.Port)
	}
	return name.String()
}

func (s *selecting) emptySlice(name string, family model.Family, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	kind := discoveryv1.AddressTypeIPv4
	if family == model.IPv6 {
		kind = discoveryv1.AddressTypeIPv6
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.service.Namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: s.service.Name},
		},
		AddressType: kind, Ports: ports,
	}
}

// portsOf are the numbers that a pod has for the Service's ports. One whose name the pod does not have is left out.
func (s *selecting) portsOf(p member) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for i := range s.ports {
		port := &s.ports[i]
		number := port.TargetPort.IntVal
		if port.TargetPort.Type == intstr.String {
			at := slices.IndexFunc(p.ports, func(n namedPort) bool {
				return n.name == port.TargetPort.StrVal && n.protocol == port.Protocol
			})
			if at < 0 {
				continue
			}
			number = p.ports[at].port
		}
		out = append(out, discoveryv1.EndpointPort{Name: &port.Name, Protocol: &port.Protocol, Port: &number})
	}
	return out
}

// endpoint has the conditions that the controller gives: a pod that ends is not ready, but serves as long as it says so.
func (s *selecting) endpoint(uid string, p named, addr netip.Addr) discoveryv1.Endpoint {
	ready := s.publishNotReady || p.ready && !p.terminating
	return discoveryv1.Endpoint{
		Addresses:  []string{addr.String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &p.ready, Terminating: &p.terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: s.service.Namespace, Name: p.name, UID: types.UID(uid)},
		NodeName:   &p.node,
	}
}
