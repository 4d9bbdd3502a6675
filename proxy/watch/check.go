package watch

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/orlop/orlop/proxy/model"
)

// checker collects what is wrong with an object.
type checker struct {
	about string
	errs  []error
}

func (c *checker) bad(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func (c *checker) err() error {
	if len(c.errs) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", c.about, errors.Join(c.errs...))
}

// names gives an object without a namespace the default one.
func (c *checker) names(kind string, object metav1.Object) {
	if object.GetNamespace() == "" {
		object.SetNamespace(metav1.NamespaceDefault)
	}
	c.about = kind + " " + object.GetNamespace() + "/" + object.GetName()
	for _, problem := range validation.IsDNS1123Label(object.GetNamespace()) {
		c.bad("metadata.namespace: %q: %s", object.GetNamespace(), problem)
	}
	for _, problem := range validation.IsDNS1123Subdomain(object.GetName()) {
		c.bad("metadata.name: %q: %s", object.GetName(), problem)
	}
}

// oneOf refuses what would be taken for the default without a word.
func oneOf[T ~string](c *checker, field string, value T, known ...T) {
	if value != "" && !slices.Contains(known, value) {
		c.bad("%s: %q is none of %q", field, value, known)
	}
}

// checkService sets defaults, and finds what an API server would have refused, or would have allocated.
func checkService(in *corev1.Service) error {
	c := &checker{}
	c.names("service", in)
	spec := &in.Spec
	if spec.Type == "" {
		spec.Type = corev1.ServiceTypeClusterIP
	}
	oneOf(c, "spec.type", spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)
	oneOf(c, "spec.sessionAffinity", spec.SessionAffinity, corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP)
	oneOf(c, "spec.externalTrafficPolicy", spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	if spec.InternalTrafficPolicy != nil {
		oneOf(c, "spec.internalTrafficPolicy", *spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	}
	if spec.ClusterIP == "" && len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	switch {
	case spec.Type == corev1.ServiceTypeExternalName || spec.ClusterIP == corev1.ClusterIPNone: // nothing is proxied
		return c.err()
	case spec.ClusterIP == "":
		c.bad("spec.clusterIP: missing; no API server allocates one here, so write an unused address, or None")
	case len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] != spec.ClusterIP:
		c.bad("spec.clusterIPs[0]: %q differs from spec.clusterIP, %q; write one of them alone", spec.ClusterIPs[0], spec.ClusterIP)
	}
	c.ports(spec)
	if _, err := model.ParseService(in); err != nil {
		c.errs = append(c.errs, errors.Unwrap(err))
	}
	return c.err()
}

func (c *checker) ports(spec *corev1.ServiceSpec) {
	if len(spec.Ports) == 0 {
		c.bad("spec.ports: empty")
	}
	names, numbers := map[string]bool{}, map[string]bool{}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		field := fmt.Sprintf("spec.ports[%d]", i)
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
		if p.Name == "" && len(spec.Ports) > 1 {
			c.bad("%s.name: missing; it is needed where there are several ports", field)
		}
		if names[p.Name] {
			c.bad("%s.name: %q is another port's already", field, p.Name)
		}
		number := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if numbers[number] {
			c.bad("%s.port: %s is another port's already", field, number)
		}
		if p.NodePort == 0 && spec.Type == corev1.ServiceTypeNodePort {
			c.bad("%s.nodePort: missing; no API server allocates one here, so write an unused port", field)
		}
		names[p.Name], numbers[number] = true, true
	}
}

func checkSlice(in *discoveryv1.EndpointSlice) error {
	c := &checker{}
	c.names("endpoint slice", in)
	if in.Labels[discoveryv1.LabelServiceName] == "" {
		c.bad("metadata.labels: %s is missing; write the name of the Service that these endpoints are of", discoveryv1.LabelServiceName)
	}
	if in.AddressType == "" {
		c.bad("addressType: missing; write IPv4 or IPv6")
	}
	oneOf(c, "addressType", in.AddressType, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
	if _, err := model.ParseSlice(in); err != nil {
		c.errs = append(c.errs, errors.Unwrap(err))
	}
	return c.err()
}

// ours tells whether this proxy is the one that serves a Service: see ourServices.
func ours(in *corev1.Service) bool {
	_, other := in.Labels[strings.TrimPrefix(ourServices, "!")]
	return !other
}

// served is false for the slices of headless Services: see ourSlices.
func served(in *discoveryv1.EndpointSlice) bool {
	_, headless := in.Labels[strings.TrimPrefix(ourSlices, "!")]
	return !headless
}
