package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Service is what the rules need of a Service object.
type Service struct {
	Name Name
	// Created decides between Services that claim the same address and port: the older has it. Seconds since 1970.
	Created int64
	// ClusterIPs has up to one address of each family.
	ClusterIPs                   []netip.Addr
	ExternalIPs, LoadBalancerIPs []netip.Addr
	SourceRanges                 []netip.Prefix
	Affinity                     time.Duration
	InternalLocal, ExternalLocal bool
	// HealthCheckNodePort is 0 where no health check is asked for.
	HealthCheckNodePort uint16
	Ports               []ServicePort
}

// ServicePort is one of a Service's ports.
type ServicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16
}

// defaultAffinity is that of the Service API.
const defaultAffinity = 3 * time.Hour

// otherProxy is a label of Services that are another proxy's, whatever its value: see KEP-2447.
const otherProxy = "service.kubernetes.io/service-proxy-name"

// ParseService takes from a Service what the rules need. It is nil for a Service that no proxy serves: headless ones and
// those of type ExternalName; and for one that another proxy serves. The error tells each value that can't be used, by its field; what is returned is without
// these, and can be used all the same.
func ParseService(in *corev1.Service) (*Service, error) {
	if _, others := in.Labels[otherProxy]; others || in.Spec.Type == corev1.ServiceTypeExternalName || in.Spec.ClusterIP == "" || in.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil, nil
	}
	p := parser{}
	out := &Service{
		Name:            Name{Namespace: in.Namespace, Name: in.Name},
		Created:         in.CreationTimestamp.Unix(),
		ClusterIPs:      p.clusterIPs(in),
		ExternalIPs:     p.addrs("spec.externalIPs", in.Spec.ExternalIPs),
		LoadBalancerIPs: p.addrs("status.loadBalancer.ingress", vips(in.Status.LoadBalancer.Ingress)),
		SourceRanges:    p.ranges(in.Spec.LoadBalancerSourceRanges),
		Affinity:        p.affinity(in),
		InternalLocal:   in.Spec.InternalTrafficPolicy != nil && *in.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
	}
	out.ExternalLocal = reachedFromOutside(in) && in.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if out.ExternalLocal && in.Spec.Type == corev1.ServiceTypeLoadBalancer {
		out.HealthCheckNodePort = p.optionalPort("spec.healthCheckNodePort", in.Spec.HealthCheckNodePort)
	}
	for i, port := range in.Spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		parsed, ok := p.port(field, port)
		switch same := func(have ServicePort) bool { return have.Name == parsed.Name && have.Protocol == parsed.Protocol }; {
		case !ok:
		case slices.ContainsFunc(out.Ports, same):
			p.refuse(field+".name", port.Name, "is a second port's of this name and protocol")
		default:
			out.Ports = append(out.Ports, parsed)
		}
	}
	if err := errors.Join(p.errs...); err != nil {
		return out, fmt.Errorf("service %s: %w", out.Name, err)
	}
	return out, nil
}

// reachedFromOutside is true where externalTrafficPolicy has a meaning.
func reachedFromOutside(in *corev1.Service) bool {
	return in.Spec.Type == corev1.ServiceTypeNodePort || in.Spec.Type == corev1.ServiceTypeLoadBalancer ||
		in.Spec.Type == corev1.ServiceTypeClusterIP && len(in.Spec.ExternalIPs) > 0
}

// maxAffinity is that of the Service API, too.
const maxAffinity = 24 * time.Hour

func (p *parser) affinity(in *corev1.Service) time.Duration {
	if in.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	c := in.Spec.SessionAffinityConfig
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
		return defaultAffinity
	}
	d := time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
	if d <= 0 || d > maxAffinity {
		p.refuse("spec.sessionAffinityConfig.clientIP.timeoutSeconds", *c.ClientIP.TimeoutSeconds, "is not within 1 to 86400")
		return defaultAffinity
	}
	return d
}

// vips are the addresses that are delivered as they are (KEP-1860): with mode Proxy the load balancer sends to node
// ports or pods, and its own address must be reached through it.
func vips(ingress []corev1.LoadBalancerIngress) []string {
	var out []string
	for _, i := range ingress {
		if i.IP != "" && (i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP) {
			out = append(out, i.IP)
		}
	}
	return out
}

// parser collects what is wrong.
type parser struct{ errs []error }

func (p *parser) refuse(field string, value any, why string) {
	p.errs = append(p.errs, fmt.Errorf("%s: %q %s; it is left out", field, fmt.Sprint(value), why))
}

func (p *parser) clusterIPs(in *corev1.Service) []netip.Addr {
	all := in.Spec.ClusterIPs
	if len(all) == 0 {
		all = []string{in.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, addr := range p.addrs("spec.clusterIPs", all) {
		if slices.ContainsFunc(out, func(a netip.Addr) bool { return FamilyOf(a) == FamilyOf(addr) }) {
			p.refuse("spec.clusterIPs", addr, "is a second address of its family")
			continue
		}
		out = append(out, addr)
	}
	return out
}

// addrs leaves out what is no address, or none that a Service may have: a rule for 127.0.0.1 or 0.0.0.0 would take the
// node's own traffic.
func (p *parser) addrs(field string, in []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		addr, err := parseAddr(s)
		switch {
		case err != nil:
			p.refuse(field, s, "is not an IP address")
		case !usable(addr):
			p.refuse(field, s, "is unspecified, loopback or multicast")
		case !slices.Contains(out, addr):
			out = append(out, addr)
		}
	}
	return out
}

func usable(addr netip.Addr) bool {
	return !addr.IsUnspecified() && !addr.IsLoopback() && !addr.IsMulticast()
}

// parseAddr also reads IPv4 octets with leading zeros, as decimals: old objects have them, and the API server keeps them.
func parseAddr(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil && strings.Count(s, ".") == 3 {
		octets := strings.Split(s, ".")
		for i, o := range octets {
			if trimmed := strings.TrimLeft(o, "0"); trimmed != "" {
				octets[i] = trimmed
			} else if o != "" {
				octets[i] = "0"
			}
		}
		addr, err = netip.ParseAddr(strings.Join(octets, "."))
	}
	return addr.Unmap().WithZone(""), err
}

// ranges is nil where all may come: one that holds all of a family is told by what is left for that family, which is
// nothing.
func (p *parser) ranges(in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		prefix, err := parsePrefix(strings.TrimSpace(s))
		if err != nil {
			p.refuse("spec.loadBalancerSourceRanges", s, "is not a CIDR")
			continue
		}
		out = append(out, prefix)
	}
	return out
}

func parsePrefix(s string) (netip.Prefix, error) {
	address, bits, ok := strings.Cut(s, "/")
	if !ok {
		return netip.Prefix{}, fmt.Errorf("%q has no /", s)
	}
	addr, err := parseAddr(address)
	if err != nil {
		return netip.Prefix{}, err
	}
	prefix, err := netip.ParsePrefix(addr.String() + "/" + bits)
	return prefix.Masked(), err
}

func (p *parser) port(field string, in corev1.ServicePort) (ServicePort, bool) {
	protocol, ok := parseProtocol(&in.Protocol)
	if !ok {
		p.refuse(field+".protocol", in.Protocol, "is not TCP, UDP or SCTP")
		return ServicePort{}, false
	}
	if in.Port < 1 || in.Port > 65535 {
		p.refuse(field+".port", in.Port, "is not within 1 to 65535")
		return ServicePort{}, false
	}
	return ServicePort{Name: in.Name, Protocol: protocol, Port: uint16(in.Port), NodePort: p.optionalPort(field+".nodePort", in.NodePort)}, true
}

func (p *parser) optionalPort(field string, port int32) uint16 {
	if port < 0 || port > 65535 {
		p.refuse(field, port, "is not within 1 to 65535")
		return 0
	}
	return uint16(port)
}

// parseProtocol takes a missing one for TCP, which is the API's default.
func parseProtocol(in *corev1.Protocol) (Protocol, bool) {
	if in == nil {
		return TCP, true
	}
	switch *in {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}
