package kubelet

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What fails is tried again after its delay, and not at once because something was done.
func TestMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
	}{{"success", nil}, {"failure", errors.New("no network")}} {
		w := &worker{pokes: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler)}
		if err := w.meanwhile(t.Context(), view{}, func() error { return tt.err }); !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if len(w.pokes) > 0 {
			t.Errorf("%s, and it looks again at once", tt.name)
		}
	}
}

// counted are what a worker has counted.
type counted struct{ starts int }

func (c *counted) PodWorked(string, time.Duration) {}
func (c *counted) PodStarted(time.Duration)        { c.starts++ }
func (c *counted) Listed(time.Duration)            {}

// A pod's start is counted once all of its containers have run, once, and not again by a kubelet that finds it running.
func TestCountStart(t *testing.T) {
	now := time.Now()
	state := func(started ...time.Duration) *v1.PodStatus {
		s := &v1.PodStatus{Phase: v1.PodRunning, ContainerStatuses: make([]v1.ContainerStatus, 2)}
		for i, after := range started {
			s.ContainerStatuses[i].State.Running = &v1.ContainerStateRunning{StartedAt: metav1.NewTime(now.Add(after))}
		}
		return s
	}
	for _, tt := range []struct {
		name   string
		states []*v1.PodStatus
		want   int
	}{
		{"one container runs", []*v1.PodStatus{state(time.Second)}, 0},
		{"both run", []*v1.PodStatus{state(time.Second), state(time.Second, 2*time.Second), state(time.Second, 9*time.Second)}, 1},
		{"both ran before", []*v1.PodStatus{state(-time.Second, -time.Second), state(-time.Second, time.Second)}, 0},
	} {
		c := &counted{}
		w := &worker{k: &Kubelet{cfg: Config{Metrics: c}}, began: now}
		for _, s := range tt.states {
			w.countStart(s)
		}
		if c.starts != tt.want {
			t.Errorf("%s: %d starts, want %d", tt.name, c.starts, tt.want)
		}
	}
}

// What the API server repeats of what it was told is no news; all else of a pod is.
func TestIsNews(t *testing.T) {
	old := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Generation: 1, Labels: map[string]string{"a": "b"}}}
	old.Status.Conditions = []v1.PodCondition{{Type: "gate", Status: v1.ConditionFalse}}
	for _, tt := range []struct {
		name   string
		change func(p *v1.Pod)
		want   bool
	}{
		{"our status", func(p *v1.Pod) {
			p.ResourceVersion, p.Status.Phase = "2", v1.PodRunning
			p.Status.Conditions = append(p.Status.Conditions, v1.PodCondition{Type: v1.PodReady, Status: v1.ConditionTrue})
		}, false},
		{"a readiness gate", func(p *v1.Pod) { p.Status.Conditions[0].Status = v1.ConditionTrue }, true},
		{"the spec", func(p *v1.Pod) { p.Generation = 2 }, true},
		{"a label", func(p *v1.Pod) { p.Labels = nil }, true},
		{"an annotation", func(p *v1.Pod) { p.Annotations = map[string]string{"x": "y"} }, true},
		{"its deletion", func(p *v1.Pod) { p.DeletionTimestamp = new(metav1.Now()) }, true},
		{"less grace", func(p *v1.Pod) { p.DeletionGracePeriodSeconds = new(int64(1)) }, true},
	} {
		p := old.DeepCopy()
		tt.change(p)
		if got := isNews(old, p); got != tt.want {
			t.Errorf("%s: news is %v", tt.name, got)
		}
	}
}

// What happened in the runtime before the worker last looked was seen.
func TestHeeded(t *testing.T) {
	w := &worker{stirs: make(chan struct{}, 1)}
	w.settle()
	w.stir(w.read.Add(-time.Millisecond))
	if !w.heeded() {
		t.Error("what happened before it looked is looked at again")
	}
	w.stir(w.read.Add(time.Millisecond))
	w.stir(w.read.Add(-time.Hour))
	if w.heeded() {
		t.Error("what happened after it looked is not looked at")
	}
}
