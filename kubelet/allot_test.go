package kubelet

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func resources(requestCPU, limitCPU, memory string) v1.ResourceRequirements {
	return v1.ResourceRequirements{
		Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse(requestCPU), v1.ResourceMemory: resource.MustParse(memory)},
		Limits: v1.ResourceList{
			v1.ResourceCPU: resource.MustParse(limitCPU), v1.ResourceMemory: resource.MustParse(memory), v1.ResourceEphemeralStorage: resource.MustParse("1Gi"),
		},
	}
}

func asking(r v1.ResourceRequirements) *v1.Pod {
	return &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Resources: r}}}}
}

func TestAllotmentDiffers(t *testing.T) {
	held := asked(asking(resources("100m", "200m", "64Mi")))
	for _, tt := range []struct {
		name string
		want v1.ResourceRequirements
		is   bool
	}{
		{"the same", resources("0.1", "200m", "65536Ki"), false},
		{"less CPU", resources("50m", "200m", "64Mi"), true},
		{"a higher limit", resources("100m", "300m", "64Mi"), true},
		{"more memory", resources("100m", "200m", "65Mi"), true},
		{"no limit", v1.ResourceRequirements{Requests: resources("100m", "1", "64Mi").Requests}, true},
	} {
		if got := held.differs(asking(tt.want)); got != tt.is {
			t.Errorf("%s: differs is %v", tt.name, got)
		}
	}
	if asked(asking(resources("1m", "1m", "64Mi"))).differs(asking(resources("1m", "10m", "64Mi"))) {
		t.Error("the kernel is told the same of both limits, and they differ")
	}
}

// TestAllotmentApply: a pod goes by what it holds, as its status has it after a restart of the kubelet; all else is as it asks.
func TestAllotmentApply(t *testing.T) {
	p := asking(resources("900m", "1", "1Gi"))
	old := resources("100m", "200m", "64Mi")
	delete(old.Limits, v1.ResourceEphemeralStorage)
	p.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "c", AllocatedResources: old.Requests, Resources: &old}}
	held := known(p)
	if !held.differs(p) {
		t.Fatal("a resize that waits is not seen after a restart")
	}
	got := held.apply(p)
	if r := got.Spec.Containers[0].Resources; r.Requests.Cpu().String() != "100m" || r.Limits.Cpu().String() != "200m" ||
		r.Limits.Memory().String() != "64Mi" || r.Limits.StorageEphemeral().String() != "1Gi" {
		t.Errorf("it goes by %v", r)
	}
	if held.differs(got) || p.Spec.Containers[0].Resources.Requests.Cpu().String() != "900m" {
		t.Error("what it holds is not what it was given, or the pod itself was changed")
	}
	p.Status.ContainerStatuses = nil
	if known(p).differs(p) {
		t.Error("a pod without a status holds something else than it asks for")
	}
}
