package admit

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// lack is a resource of which the node has too little. Amounts are those of kubelet's messages: CPU in thousandths.
type lack struct {
	name                      v1.ResourceName
	requested, used, capacity int64
}

// missing is how much must be freed.
func (l lack) missing() int64 { return l.requested + l.used - l.capacity }

func (l lack) refusal() *Refusal {
	return &Refusal{"OutOf" + string(l.name), fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", l.name, l.requested, l.used, l.capacity)}
}

func resources(p *v1.Pod, n Node) *Refusal {
	if lacks := lacking(p, n); len(lacks) > 0 {
		return lacks[0].refusal()
	}
	return nil
}

// lacking is what the node has too little of for the pod beside all others.
func lacking(p *v1.Pod, n Node) []lack {
	others := slices.DeleteFunc(slices.Clone(n.Pods), func(o *v1.Pod) bool { return o.UID == p.UID })
	wants, taken := amounts(p), sum(others)
	var out []lack
	for _, name := range slices.Sorted(maps.Keys(wants)) {
		capacity, known := n.capacity(name)
		if !known {
			continue
		}
		l := lack{name: name, requested: wants[name], used: taken[name], capacity: capacity}
		if l.requested > 0 && l.missing() > 0 {
			out = append(out, l)
		}
	}
	return out
}

// amounts are what a pod takes of a node, its place among the pods included.
func amounts(p *v1.Pod) map[v1.ResourceName]int64 {
	out := map[v1.ResourceName]int64{v1.ResourcePods: 1}
	list := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	for name := range list {
		out[name] = amount(list, name)
	}
	return out
}

func amount(list v1.ResourceList, name v1.ResourceName) int64 {
	q := list[name]
	if name == v1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

func sum(pods []*v1.Pod) map[v1.ResourceName]int64 {
	total := map[v1.ResourceName]int64{}
	for _, p := range pods {
		for name, n := range amounts(p) {
			total[name] += n
		}
	}
	return total
}

// capacity is what pods may have of a resource. Extended resources are what the API server has of the node: somebody else
// counts them there. One that the node does not have is the cluster's, and so is not known here.
func (n Node) capacity(name v1.ResourceName) (int64, bool) {
	if _, has := n.Allocatable[name]; has {
		return amount(n.Allocatable, name), true
	}
	if n.Object != nil {
		if _, has := n.Object.Status.Allocatable[name]; has {
			return amount(n.Object.Status.Allocatable, name), true
		}
	}
	return 0, strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix)
}
