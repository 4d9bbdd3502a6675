// Package downward is the downward API: what a pod may read of itself, as environment variables and as files. It is pure.
package downward

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/orlop/orlop/kubelet/pod"
)

// Field is the value at a field path such as "metadata.name", "metadata.labels['app']" or "status.podIP". Of the status,
// what is not known yet is empty.
func Field(p *v1.Pod, path string) (string, error) {
	if key, ok := subscript(path, "metadata.labels"); ok {
		return p.Labels[key], nil
	}
	if key, ok := subscript(path, "metadata.annotations"); ok {
		return p.Annotations[key], nil
	}
	switch path {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "metadata.labels":
		return lines(p.Labels), nil
	case "metadata.annotations":
		return lines(p.Annotations), nil
	case "spec.nodeName":
		return p.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return p.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return p.Status.HostIP, nil
	case "status.hostIPs":
		ips := make([]string, len(p.Status.HostIPs))
		for i, ip := range p.Status.HostIPs {
			ips[i] = ip.IP
		}
		return strings.Join(ips, ","), nil
	case "status.podIP":
		return p.Status.PodIP, nil
	case "status.podIPs":
		ips := make([]string, len(p.Status.PodIPs))
		for i, ip := range p.Status.PodIPs {
			ips[i] = ip.IP
		}
		return strings.Join(ips, ","), nil
	}
	return "", fmt.Errorf("fieldPath %q: unknown; write one that the downward API has, such as metadata.name", path)
}

// subscript reads KEY of NAME['KEY'].
func subscript(path, name string) (string, bool) {
	rest, ok := strings.CutPrefix(path, name+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

// lines writes labels or annotations as KEY="VALUE", sorted.
func lines(m map[string]string) string {
	var b strings.Builder
	for i, key := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(key + "=" + strconv.Quote(m[key]))
	}
	return b.String()
}

// Resource is a request or limit of a container, in units of the selector's divisor, rounded up. In a volume the selector
// names the container; in an environment it may leave self's name out. A limit that is not set is what the node can give.
func Resource(p *v1.Pod, self string, s *v1.ResourceFieldSelector, allocatable v1.ResourceList) (string, error) {
	name := cmp.Or(s.ContainerName, self)
	c, _ := pod.Container(p, name)
	if c == nil {
		return "", fmt.Errorf("resourceFieldRef.containerName %q: the pod has no such container", name)
	}
	kind, what, ok := strings.Cut(s.Resource, ".")
	if !ok || (kind != "limits" && kind != "requests") {
		return "", fmt.Errorf("resourceFieldRef.resource %q: write limits.NAME or requests.NAME", s.Resource)
	}
	resourceName := v1.ResourceName(what)
	known := resourceName == v1.ResourceCPU || resourceName == v1.ResourceMemory || resourceName == v1.ResourceEphemeralStorage ||
		strings.HasPrefix(what, v1.ResourceHugePagesPrefix)
	if !known {
		return "", fmt.Errorf("resourceFieldRef.resource %q: unknown; write cpu, memory, ephemeral-storage or hugepages-SIZE", s.Resource)
	}
	var q resource.Quantity
	if kind == "limits" {
		if q = c.Resources.Limits[resourceName]; q.IsZero() {
			q = allocatable[resourceName]
		}
	} else {
		q = c.Resources.Requests[resourceName]
	}
	return inUnits(q, s.Divisor, resourceName == v1.ResourceCPU), nil
}

// inUnits divides, rounding up. CPU is counted in thousandths, so that a divisor of 1m works.
func inUnits(q, divisor resource.Quantity, milli bool) string {
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	a, b := q.Value(), divisor.Value()
	if milli {
		a, b = q.MilliValue(), divisor.MilliValue()
	}
	return strconv.FormatInt((a+b-1)/b, 10)
}
