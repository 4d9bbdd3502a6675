package shutdown

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/orlop/orlop/kubelet/pod"
)

// Period is how long pods of a priority get to end. It is for those of Priority and above, up to the next period's.
type Period struct {
	Priority int32
	Grace    time.Duration
}

// Periods are what a configuration gives, the lowest priority first: those of its list (KEP-2712), or one for critical pods
// after one for the others (KEP-2000). None means that shutdowns are not delayed.
func Periods(c *kubeletconfig.KubeletConfiguration) []Period {
	var out []Period
	for _, p := range c.ShutdownGracePeriodByPodPriority {
		out = append(out, Period{p.Priority, time.Duration(p.ShutdownGracePeriodSeconds) * time.Second})
	}
	if all, critical := c.ShutdownGracePeriod.Duration, c.ShutdownGracePeriodCriticalPods.Duration; len(out) == 0 && all > 0 {
		out = []Period{{0, (all - critical).Truncate(time.Second)}, {pod.SystemCriticalPriority, critical.Truncate(time.Second)}}
	}
	slices.SortStableFunc(out, func(a, b Period) int { return cmp.Compare(a.Priority, b.Priority) })
	return out
}

// sum is for how long a shutdown must be delayed for all periods.
func sum(periods []Period) time.Duration {
	total := time.Duration(0)
	for _, p := range periods {
		total += p.Grace
	}
	return total
}

// group is the pods that end together.
type group struct {
	Period
	pods []*v1.Pod
}

// groups puts each pod into the last period whose priority is not above the pod's, or else into the first.
func groups(periods []Period, pods []*v1.Pod) []group {
	out := make([]group, len(periods))
	for i, p := range periods {
		out[i].Period = p
	}
	for _, p := range pods {
		i := len(out) - 1
		for i > 0 && out[i].Priority > pod.Priority(p) {
			i--
		}
		out[i].pods = append(out[i].pods, p)
	}
	return out
}

// grace is how many seconds a pod gets: what it wants itself, but no more than its period has.
func (g group) grace(p *v1.Pod) int64 {
	return min(pod.GracePeriodSeconds(p), int64(g.Grace/time.Second))
}
