package resource

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestNumbers(t *testing.T) {
	for milli, want := range map[int64]int64{0: 2, 1: 2, 2: 2, 100: 102, 1000: 1024, 10_000_000: 262144} {
		if got := Shares(milli); got != want {
			t.Errorf("Shares(%d) = %d, want %d", milli, got, want)
		}
	}
	for milli, want := range map[int64]int64{0: 0, 1: 1000, 10: 1000, 500: 50_000, 2000: 200_000} {
		if got := Quota(milli); got != want {
			t.Errorf("Quota(%d) = %d, want %d", milli, got, want)
		}
	}
}

// container makes one of "cpu memory" of requests and limits; "" is not set.
func container(name, requestCPU, requestMemory, limitCPU, limitMemory string) v1.Container {
	c := v1.Container{Name: name, Resources: v1.ResourceRequirements{Requests: v1.ResourceList{}, Limits: v1.ResourceList{}}}
	set := func(list v1.ResourceList, name v1.ResourceName, value string) {
		if value != "" {
			list[name] = resource.MustParse(value)
		}
	}
	set(c.Resources.Requests, v1.ResourceCPU, requestCPU)
	set(c.Resources.Requests, v1.ResourceMemory, requestMemory)
	set(c.Resources.Limits, v1.ResourceCPU, limitCPU)
	set(c.Resources.Limits, v1.ResourceMemory, limitMemory)
	return c
}

func podOf(containers ...v1.Container) *v1.Pod {
	return &v1.Pod{Spec: v1.PodSpec{Containers: containers}}
}

func TestOOMScore(t *testing.T) {
	const memory = 4 << 30
	always := v1.ContainerRestartPolicyAlways
	withSidecar := podOf(container("main", "", "1Gi", "", ""))
	withSidecar.Spec.InitContainers = []v1.Container{{Name: "side", RestartPolicy: &always}}
	critical := podOf(container("main", "", "", "", ""))
	critical.Spec.PriorityClassName = "system-node-critical"
	for _, tt := range []struct {
		name string
		pod  *v1.Pod
		want int64
	}{
		{"guaranteed", podOf(container("main", "1", "1Gi", "1", "1Gi")), -997},
		{"best effort", podOf(container("main", "", "", "", "")), 1000},
		{"a quarter of the machine", podOf(container("main", "", "1Gi", "", "")), 750},
		{"next to nothing", podOf(container("main", "1m", "", "", "")), 999},
		{"all of it", podOf(container("main", "", "8Gi", "", "")), 3},
		{"critical", critical, -997},
	} {
		if got := OOMScore(tt.pod, &tt.pod.Spec.Containers[0], memory); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	if got := OOMScore(withSidecar, &withSidecar.Spec.InitContainers[0], memory); got != 750 {
		t.Errorf("a sidecar is killed before its main container: %d", got)
	}
}

func TestOfPod(t *testing.T) {
	for _, tt := range []struct {
		name string
		pod  *v1.Pod
		want Pod
	}{
		{"guaranteed", podOf(container("a", "1", "1Gi", "1", "1Gi")), Pod{Shares: 1024, Quota: 100_000, Memory: 1 << 30}},
		{"burstable, all limited", podOf(container("a", "100m", "", "200m", "1Mi"), container("b", "", "", "300m", "1Mi")), Pod{Shares: 102, Quota: 50_000, Memory: 2 << 20}},
		{"burstable, one unlimited", podOf(container("a", "100m", "", "200m", "1Mi"), container("b", "100m", "", "", "1Mi")), Pod{Shares: 204, Memory: 2 << 20}},
		{"best effort", podOf(container("a", "", "", "", "")), Pod{Shares: 2}},
	} {
		got := OfPod(tt.pod, Node{})
		if got.Shares != tt.want.Shares || got.Quota != tt.want.Quota || got.Memory != tt.want.Memory {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestContainer(t *testing.T) {
	p := podOf(container("a", "", "64Mi", "500m", "128Mi"))
	node := Node{Memory: 4 << 30, Swap: 1 << 30, SwapLimited: true, CgroupV2: true, HugePages: []int64{2 << 20, 1 << 30}}
	got := Container(p, &p.Spec.Containers[0], node)
	if got.CpuShares != 512 || got.CpuQuota != 50_000 || got.CpuPeriod != 100_000 || got.MemoryLimitInBytes != 128<<20 {
		t.Errorf("%+v", got)
	}
	if got.MemorySwapLimitInBytes != 128<<20+16<<20 { // 64 Mi of 4 Gi is a 64th, and so of the swap
		t.Errorf("swap limit %d", got.MemorySwapLimitInBytes)
	}
	if len(got.HugepageLimits) != 2 || got.HugepageLimits[0].PageSize != "2MB" || got.HugepageLimits[1].PageSize != "1GB" {
		t.Errorf("huge pages %v", got.HugepageLimits)
	}
	if got.Unified["memory.oom.group"] != "1" {
		t.Errorf("unified %v", got.Unified)
	}
	node.SwapLimited = false
	if got := Container(p, &p.Spec.Containers[0], node); got.MemorySwapLimitInBytes != got.MemoryLimitInBytes {
		t.Errorf("without LimitedSwap: memory and swap %d", got.MemorySwapLimitInBytes)
	}
}
