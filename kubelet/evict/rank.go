package evict

import (
	"cmp"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/pod"
)

// ranked is a pod and what it uses of what is short.
type ranked struct {
	pod     *v1.Pod
	used    int64
	request int64
	greedy  []usage // containers that use more than they asked for
}

type usage struct {
	name          string
	used, request int64
}

// rank orders pods by how soon they are evicted, see the documentation of node-pressure eviction: those that use more than
// they asked for, then those of lower priority, then those that use the most beyond what they asked for. Critical pods, and
// those that end already, are not among them.
func rank(pods []*v1.Pod, summary *stats.Summary, signal Signal) []ranked {
	byUID := map[string]*stats.PodStats{}
	for i := range summary.Pods {
		byUID[summary.Pods[i].PodRef.UID] = &summary.Pods[i]
	}
	var out []ranked
	for _, p := range pods {
		if pod.IsCritical(p) || p.DeletionTimestamp != nil || pod.IsTerminal(p.Status.Phase) {
			continue
		}
		out = append(out, measure(p, byUID[string(p.UID)], signal))
	}
	slices.SortStableFunc(out, func(a, b ranked) int {
		return cmp.Or(
			compareBool(b.used > b.request, a.used > a.request),
			cmp.Compare(pod.Priority(a.pod), pod.Priority(b.pod)),
			cmp.Compare(b.used-b.request, a.used-a.request),
		)
	})
	return out
}

// compareBool sorts false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func measure(p *v1.Pod, s *stats.PodStats, signal Signal) ranked {
	r := ranked{pod: p}
	if s == nil {
		return r
	}
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	switch signal {
	case Memory:
		r.request = requests.Memory().Value()
		if s.Memory != nil {
			r.used = number(s.Memory.WorkingSetBytes)
		}
	case ProcessIDs:
		if s.ProcessStats != nil {
			r.used = number(s.ProcessStats.ProcessCount)
		}
	case NodeInodes, ImageInodes:
		if s.EphemeralStorage != nil {
			r.used = number(s.EphemeralStorage.InodesUsed)
		}
	default:
		storage := requests[v1.ResourceEphemeralStorage]
		r.request = storage.Value()
		if s.EphemeralStorage != nil {
			r.used = number(s.EphemeralStorage.UsedBytes)
		}
	}
	r.greedy = greedy(p, s, signal)
	return r
}

func number(n *uint64) int64 {
	if n == nil {
		return 0
	}
	return int64(*n)
}

func greedy(p *v1.Pod, s *stats.PodStats, signal Signal) []usage {
	var out []usage
	for i := range s.Containers {
		c := &s.Containers[i]
		spec, _ := pod.Container(p, c.Name)
		if spec == nil {
			continue
		}
		u := usage{name: c.Name}
		switch signal {
		case Memory:
			u.request = spec.Resources.Requests.Memory().Value()
			if c.Memory != nil {
				u.used = number(c.Memory.WorkingSetBytes)
			}
		case NodeDisk, ImageDisk:
			u.request, u.used = spec.Resources.Requests.StorageEphemeral().Value(), disk(c)
		}
		if u.used > u.request {
			out = append(out, u)
		}
	}
	return out
}

// disk is what a container has written: into its root filesystem and its log.
func disk(c *stats.ContainerStats) int64 {
	used := int64(0)
	for _, fs := range []*stats.FsStats{c.Rootfs, c.Logs} {
		if fs != nil {
			used += number(fs.UsedBytes)
		}
	}
	return used
}

func format(signal Signal, n int64) string {
	if signal == Memory || signal == NodeDisk || signal == ImageDisk {
		return resource.NewQuantity(n/1024*1024, resource.BinarySI).String()
	}
	return resource.NewQuantity(n, resource.DecimalSI).String()
}
