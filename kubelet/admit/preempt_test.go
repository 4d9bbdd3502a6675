package admit

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// taker is a pod of a QoS class that takes so much CPU.
func taker(name string, class v1.PodQOSClass, amount string, priority int32) *v1.Pod {
	return podWith(func(p *v1.Pod) {
		p.Name, p.UID, p.Spec.Priority = name, types.UID(name), &priority
		if amount != "0" {
			cpu(amount)(p)
		}
		p.Status.QOSClass = class
	})
}

func TestPreempt(t *testing.T) {
	const critical = 2_000_000_000
	be, bu, gu := v1.PodQOSBestEffort, v1.PodQOSBurstable, v1.PodQOSGuaranteed
	ending := taker("ending", gu, "500m", 0)
	ending.DeletionTimestamp = &metav1.Time{}
	for _, tt := range []struct {
		name     string
		amount   string
		priority int32
		pods     []*v1.Pod
		places   string
		want     string
	}{
		{"it fits", "1", critical, []*v1.Pod{taker("a", bu, "1", 0)}, "10", ""},
		{"not critical", "1", critical - 1, []*v1.Pod{taker("a", bu, "1500m", 0)}, "10", ""},
		{"the one pod", "1", critical, []*v1.Pod{taker("a", bu, "1500m", 0)}, "10", "a"},
		{"one that is enough, not many", "1", critical, []*v1.Pod{taker("a", bu, "300m", 0), taker("b", bu, "600m", 0), taker("c", bu, "1100m", 0)}, "10", "c"},
		{"the smaller of two", "1", critical, []*v1.Pod{taker("a", bu, "1200m", 0), taker("b", bu, "800m", 0), taker("c", be, "0", 0)}, "10", "a"},
		{"burstable before guaranteed", "1", critical, []*v1.Pod{taker("a", gu, "1", 0), taker("b", bu, "1", 0)}, "10", "b"},
		{"guaranteed if need be", "1500m", critical, []*v1.Pod{taker("a", gu, "1", 0), taker("b", bu, "1", 0)}, "10", "b a"},
		{"those that end anyhow come first", "1", critical, []*v1.Pod{taker("a", bu, "1", 0), ending, taker("c", bu, "500m", 0)}, "10", "ending c"},
		{"a place", "100m", critical, []*v1.Pod{taker("a", bu, "100m", 0), taker("b", be, "0", 0)}, "2", "b"},
		{"critical ones stay", "1", critical, []*v1.Pod{taker("a", bu, "2", critical)}, "10", ""},
		{"less critical ones go", "1", critical + 1000, []*v1.Pod{taker("a", bu, "2", critical)}, "10", "a"},
		{"it would not help", "3", critical, []*v1.Pod{taker("a", bu, "1", 0)}, "10", ""},
	} {
		n := Node{Pods: tt.pods, Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("2"), v1.ResourcePods: resource.MustParse(tt.places)}}
		var got []string
		for _, p := range Preempt(taker("p", bu, tt.amount, tt.priority), n) {
			got = append(got, p.Name)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v, want %q", tt.name, got, tt.want)
		}
	}
	n := Node{Pods: []*v1.Pod{taker("a", bu, "2", 0)}, Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("2"), v1.ResourcePods: resource.MustParse("9")}, ShuttingDown: true}
	if got := Preempt(taker("p", bu, "1", critical), n); got != nil {
		t.Errorf("%d pods must end for one that may not run for another reason", len(got))
	}
}
