// Package resource turns requests and limits of pods into what the kernel is told: CPU shares and quotas, memory limits,
// OOM scores. It is pure. The numbers are kubelet's (pkg/kubelet/cm/helpers_linux.go, pkg/kubelet/qos), so that a pod
// weighs the same under either.
package resource

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

// The kernel's bounds and the kubelet's choices of CPU time.
const (
	minShares    = 2
	maxShares    = 262144
	sharesPerCPU = 1024
	quotaPeriod  = 100_000 // microseconds
	minQuota     = 1000    // microseconds; the kernel takes no less
)

// OOM scores, see KEP-2570 and the documentation of node-pressure eviction.
const (
	guaranteedScore = -997
	bestEffortScore = 1000
)

// Shares is cpu.shares of a request.
func Shares(milliCPU int64) int64 {
	if milliCPU <= 0 {
		return minShares
	}
	return min(max(milliCPU*sharesPerCPU/1000, minShares), maxShares)
}

// Quota is cpu.cfs_quota_us of a limit with the period of 100 ms; 0 for no limit.
func Quota(milliCPU int64) int64 {
	if milliCPU <= 0 {
		return 0
	}
	return max(milliCPU*quotaPeriod/1000, minQuota)
}

// Node is what of a node bears on its pods.
type Node struct {
	Memory      int64 // bytes that the machine has
	Swap        int64 // bytes that the machine has
	SwapLimited bool  // memorySwap.swapBehavior is LimitedSwap (KEP-2400)
	NoQuota     bool  // cpuCFSQuota is false
	CgroupV2    bool
	HugePages   []int64 // sizes in bytes that the kernel has
}

// Container is what the runtime is told of a container's resources.
func Container(p *v1.Pod, c *v1.Container, node Node) *cri.LinuxContainerResources {
	limits := c.Resources.Limits
	r := &cri.LinuxContainerResources{
		CpuShares:          Shares(cpuRequest(c.Resources)),
		CpuPeriod:          quotaPeriod,
		MemoryLimitInBytes: limits.Memory().Value(),
		OomScoreAdj:        OOMScore(p, c, node.Memory),
		HugepageLimits:     hugePages(limits, node.HugePages),
	}
	if !node.NoQuota {
		r.CpuQuota = Quota(limits.Cpu().MilliValue())
	}
	if node.CgroupV2 {
		r.Unified = map[string]string{"memory.oom.group": "1"} // an OOM kill ends the container, not one of its processes
	}
	r.MemorySwapLimitInBytes = r.MemoryLimitInBytes + swap(p, c, node)
	return r
}

// swap is what a container may use of swap beside its memory: nothing, or under LimitedSwap its share by memory request
// if the pod is Burstable, the container has a request below its limit, and the pod is not critical (KEP-2400).
func swap(p *v1.Pod, c *v1.Container, node Node) int64 {
	request, limit := c.Resources.Requests.Memory().Value(), c.Resources.Limits.Memory().Value()
	if !node.SwapLimited || !node.CgroupV2 || pod.QoS(p) != v1.PodQOSBurstable || pod.IsCritical(p) || request == 0 || request == limit || node.Memory == 0 {
		return 0
	}
	return int64(float64(request) / float64(node.Memory) * float64(node.Swap))
}

// cpuRequest is in milli-CPUs. A limit without a request asks for the limit, as the API server's defaults say.
func cpuRequest(r v1.ResourceRequirements) int64 {
	if _, has := r.Requests[v1.ResourceCPU]; !has {
		return r.Limits.Cpu().MilliValue()
	}
	return r.Requests.Cpu().MilliValue()
}

// hugePages limits every page size that the kernel has: what is not asked for is not to be had.
func hugePages(limits v1.ResourceList, sizes []int64) []*cri.HugepageLimit {
	var out []*cri.HugepageLimit
	for _, size := range sizes {
		q := limits[v1.ResourceName(v1.ResourceHugePagesPrefix+resource.NewQuantity(size, resource.BinarySI).String())]
		out = append(out, &cri.HugepageLimit{PageSize: pageSize(size), Limit: uint64(q.Value())})
	}
	return out
}

// pageSize writes a size as hugetlb's file names do: 2MB, 1GB.
func pageSize(bytes int64) string {
	s := resource.NewQuantity(bytes, resource.BinarySI).String()
	return strings.TrimSuffix(s, "i") + "B"
}

// OOMScore is oom_score_adj of a container on a machine of so many bytes of memory: the less it asked for, the sooner it
// is killed. A sidecar is killed no sooner than the main containers (KEP-753).
func OOMScore(p *v1.Pod, c *v1.Container, memory int64) int64 {
	score := oomScore(p, c, memory)
	if !pod.IsSidecar(c) {
		return score
	}
	for i := range p.Spec.Containers {
		score = min(score, oomScore(p, &p.Spec.Containers[i], memory))
	}
	return score
}

func oomScore(p *v1.Pod, c *v1.Container, memory int64) int64 {
	if pod.IsNodeCritical(p) {
		return guaranteedScore
	}
	switch pod.QoS(p) {
	case v1.PodQOSGuaranteed:
		return guaranteedScore
	case v1.PodQOSBestEffort:
		return bestEffortScore
	}
	if memory == 0 {
		return bestEffortScore - 1
	}
	request := c.Resources.Requests.Memory().Value()
	if resourcehelper.IsPodLevelResourcesSet(p) {
		request += unclaimed(p) // what only the pod asked for is spread over its containers
	}
	score := 1000 - 1000*request/memory
	return min(max(score, 1000+guaranteedScore), bestEffortScore-1)
}

// unclaimed is each container's share of the memory that the pod as a whole asks for beyond its containers.
func unclaimed(p *v1.Pod) int64 {
	total := p.Spec.Resources.Requests.Memory().Value()
	count := int64(0)
	for c, kind := range pod.Containers(p) {
		if kind == pod.Main || kind == pod.Sidecar {
			total -= c.Resources.Requests.Memory().Value()
			count++
		}
	}
	return max(total, 0) / max(count, 1)
}

// Pod is what the cgroup of a pod, or of all pods of a class, is told.
type Pod struct {
	Shares int64 // of CPU
	Quota  int64 // microseconds per 100 ms; 0 for no limit
	Memory int64 // bytes; 0 for no limit
	Pids   int64 // 0 for no limit
	Huge   []*cri.HugepageLimit
}

// OfPod is what a pod's own cgroup gets. It has a limit only if all of its containers, or the pod itself, have one.
func OfPod(p *v1.Pod, node Node) Pod {
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	limits := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})
	out := Pod{Huge: hugePages(limits, node.HugePages)}
	switch pod.QoS(p) {
	case v1.PodQOSBestEffort:
		out.Shares = minShares
		return out
	case v1.PodQOSGuaranteed:
		out.Shares = Shares(requests.Cpu().MilliValue())
		out.Quota, out.Memory = Quota(limits.Cpu().MilliValue()), limits.Memory().Value()
	default:
		out.Shares = Shares(requests.Cpu().MilliValue())
		if allLimit(p, v1.ResourceCPU) {
			out.Quota = Quota(limits.Cpu().MilliValue())
		}
		if allLimit(p, v1.ResourceMemory) {
			out.Memory = limits.Memory().Value()
		}
	}
	if node.NoQuota {
		out.Quota = 0
	}
	return out
}

func allLimit(p *v1.Pod, name v1.ResourceName) bool {
	if resourcehelper.IsPodLevelResourcesSet(p) {
		if q := p.Spec.Resources.Limits[name]; !q.IsZero() {
			return true
		}
	}
	for c, kind := range pod.Containers(p) {
		if q := c.Resources.Limits[name]; kind != pod.Ephemeral && q.IsZero() {
			return false
		}
	}
	return true
}

// Burstable is cpu.shares of the cgroup of all Burstable pods: the sum of what they ask for.
func Burstable(pods []*v1.Pod) int64 {
	total := int64(0)
	for _, p := range pods {
		if pod.QoS(p) == v1.PodQOSBurstable {
			requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
			total += requests.Cpu().MilliValue()
		}
	}
	return Shares(total)
}
