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
