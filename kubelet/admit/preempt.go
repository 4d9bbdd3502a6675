package admit

import (
	"cmp"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

// Preempt chooses the pods that must end for a critical pod to fit that lacks nothing but resources, as few and as cheap ones
// as will do. It is empty if the pod fits, or if no end of others would let it run: Check then tells why.
func Preempt(p *v1.Pod, n Node) []*v1.Pod {
	lacks := lacking(p, n)
	if len(lacks) == 0 || !pod.IsCritical(p) || refuse(p, n, allButResources) != nil {
		return nil
	}
	classes := byCost(p, n.Pods)
	if len(without(lacks, slices.Concat(classes...))) > 0 {
		return nil
	}
	var out []*v1.Pod
	for i, class := range slices.Backward(classes) { // of a costly class only what the cheaper ones can't give
		cheaper := slices.Concat(classes[:i]...)
		out = append(out, fewest(class, without(lacks, slices.Concat(cheaper, out)))...)
	}
	slices.Reverse(out)
	return out
}

// byCost parts the pods that may end for p into those that end anyhow, and then by QoS class.
func byCost(p *v1.Pod, pods []*v1.Pod) [][]*v1.Pod {
	classes := make([][]*v1.Pod, 4)
	for _, other := range pods {
		cost := 0
		switch {
		case other.UID == p.UID || !yields(other, p):
			continue
		case other.DeletionTimestamp != nil:
		case pod.QoS(other) == v1.PodQOSBestEffort:
			cost = 1
		case pod.QoS(other) == v1.PodQOSBurstable:
			cost = 2
		default:
			cost = 3
		}
		classes[cost] = append(classes[cost], other)
	}
	return classes
}

// yields is true for a pod that is less than another one, which is critical.
func yields(p, to *v1.Pod) bool {
	return !pod.IsCritical(p) || pod.Priority(p) < pod.Priority(to)
}

// without is what is lacking yet when some pods have ended.
func without(lacks []lack, ended []*v1.Pod) []lack {
	var out []lack
	freed := sum(ended)
	for _, l := range lacks {
		l.used -= freed[l.name]
		if l.missing() > 0 {
			out = append(out, l)
		}
	}
	return out
}

// fewest takes pods until nothing is lacking, each time the one that leaves the least to be desired; of two such the smaller.
func fewest(pods []*v1.Pod, lacks []lack) []*v1.Pod {
	var out []*v1.Pod
	for pods = slices.Clone(pods); len(lacks) > 0 && len(pods) > 0; {
		best := slices.MinFunc(pods, func(a, b *v1.Pod) int {
			x, y := amounts(a), amounts(b)
			return cmp.Or(cmp.Compare(rest(x, lacks), rest(y, lacks)), cmp.Compare(x[v1.ResourceMemory], y[v1.ResourceMemory]), cmp.Compare(x[v1.ResourceCPU], y[v1.ResourceCPU]))
		})
		out = append(out, best)
		lacks = without(lacks, []*v1.Pod{best})
		pods = slices.DeleteFunc(pods, func(o *v1.Pod) bool { return o == best })
	}
	return out
}

// rest is how far what is lacking is from being covered by what one pod takes. Each resource weighs the same.
func rest(takes map[v1.ResourceName]int64, lacks []lack) float64 {
	far := 0.0
	for _, l := range lacks {
		part := max(0, float64(l.missing()-takes[l.name])/float64(l.missing()))
		far += part * part
	}
	return far
}
