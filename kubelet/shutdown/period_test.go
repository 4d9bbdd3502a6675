package shutdown

import (
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
)

func TestPeriods(t *testing.T) {
	duration := func(d time.Duration) metav1.Duration { return metav1.Duration{Duration: d} }
	for _, tt := range []struct {
		name string
		in   kubeletconfig.KubeletConfiguration
		want []Period
	}{
		{"nothing set", kubeletconfig.KubeletConfiguration{}, nil},
		{"two kinds of pods", kubeletconfig.KubeletConfiguration{
			ShutdownGracePeriod: duration(30 * time.Second), ShutdownGracePeriodCriticalPods: duration(10 * time.Second),
		}, []Period{{0, 20 * time.Second}, {2_000_000_000, 10 * time.Second}}},
		{"none for critical pods", kubeletconfig.KubeletConfiguration{ShutdownGracePeriod: duration(3 * time.Second)},
			[]Period{{0, 3 * time.Second}, {2_000_000_000, 0}}},
		{"a list", kubeletconfig.KubeletConfiguration{ShutdownGracePeriodByPodPriority: []kubeletconfig.ShutdownGracePeriodByPodPriority{
			{Priority: 1000, ShutdownGracePeriodSeconds: 5}, {Priority: -10, ShutdownGracePeriodSeconds: 7},
		}}, []Period{{-10, 7 * time.Second}, {1000, 5 * time.Second}}},
	} {
		if got := Periods(&tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// podOf is a pod with a priority that wants some seconds to end.
func podOf(name string, priority int32, seconds int64) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: v1.PodSpec{Priority: &priority, TerminationGracePeriodSeconds: &seconds}}
}

// TestGroups: a pod ends with those of the next lower priority that has a period, and one below all with the first.
func TestGroups(t *testing.T) {
	periods := []Period{{10, 5 * time.Second}, {100, 6 * time.Second}, {1000, 7 * time.Second}}
	for _, tt := range []struct {
		priority int32
		want     int
	}{{-5, 0}, {9, 0}, {10, 0}, {99, 0}, {100, 1}, {999, 1}, {1000, 2}, {2_000_001_000, 2}} {
		for i, g := range groups(periods, []*v1.Pod{podOf("a", tt.priority, 30)}) {
			if (len(g.pods) == 1) != (i == tt.want) {
				t.Errorf("priority %d: group %d has %d pods", tt.priority, i, len(g.pods))
			}
		}
	}
}

// TestGrace: a pod gets what it asks for, and no more than its period; a deletion's grace comes before the spec's.
func TestGrace(t *testing.T) {
	g := group{Period: Period{Grace: 10 * time.Second}}
	deleted, three := podOf("a", 0, 60), int64(3)
	deleted.DeletionGracePeriodSeconds = &three
	for _, tt := range []struct {
		pod  *v1.Pod
		want int64
	}{{podOf("a", 0, 60), 10}, {podOf("a", 0, 4), 4}, {podOf("a", 0, 0), 0}, {&v1.Pod{}, 10}, {deleted, 3}} {
		if got := g.grace(tt.pod); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.pod.Spec, got, tt.want)
		}
	}
}
