package status

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/kubelet/cluster"
)

// stand is a manager that sends to an API server, which has one pod.
type stand struct {
	*testing.T
	client  *cluster.Client
	manager *Manager
}

func newStand(t *testing.T) *stand {
	server := kubetest.New(t)
	server.Set(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}})
	client, err := cluster.New(server.Client(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	s := &stand{t, client, NewManager(client, slog.New(slog.DiscardHandler))}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.manager.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// pod is as the API server has it.
func (s *stand) pod() *v1.Pod {
	s.Helper()
	p, err := s.client.Pods.In("default").Get(s.Context(), "a", metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return p
}

// set tells a status, of a pod that is known as it is in known, and waits until it was sent.
func (s *stand) set(known *v1.Pod, status v1.PodStatus) {
	s.Helper()
	s.manager.Set(known.UID, known, status)
	ctx, cancel := context.WithTimeout(s.Context(), 10*time.Second)
	defer cancel()
	if err := s.manager.Settle(ctx, known.UID); err != nil {
		s.Fatal(err)
	}
}

// running is a pod's status with its readiness.
func running(ready v1.ConditionStatus) v1.PodStatus {
	return v1.PodStatus{
		Phase:             v1.PodRunning,
		Conditions:        []v1.PodCondition{{Type: v1.PodReady, Status: ready}},
		ContainerStatuses: []v1.ContainerStatus{{Name: "main", Ready: ready == v1.ConditionTrue}},
	}
}

// The watch that tells how the API server has a pod may be behind: what was sent last is then what is there.
func TestWatchBehind(t *testing.T) {
	s := newStand(t)
	s.set(s.pod(), running(v1.ConditionTrue))
	behind := s.pod()
	s.set(behind, running(v1.ConditionFalse))
	s.set(behind, running(v1.ConditionTrue))
	if diff := cmp.Diff(running(v1.ConditionTrue), s.pod().Status); diff != "" {
		t.Errorf("what the API server has (-want +got):\n%s", diff)
	}
}

// What somebody else has made of a pod's status is put right when it is seen, but for conditions of others.
func TestDisturbed(t *testing.T) {
	s := newStand(t)
	want := running(v1.ConditionTrue)
	s.set(s.pod(), want)
	p := s.pod()
	gate := v1.PodCondition{Type: "example.com/gate", Status: v1.ConditionTrue}
	p.Status.Conditions = append(running(v1.ConditionFalse).Conditions, gate)
	p, err := s.client.Pods.In("default").Update(t.Context(), p, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.set(p, want)
	want.Conditions = append(want.Conditions, gate)
	if diff := cmp.Diff(want, s.pod().Status); diff != "" {
		t.Errorf("what the API server has (-want +got):\n%s", diff)
	}
	version := s.pod().ResourceVersion
	s.set(s.pod(), running(v1.ConditionTrue))
	if now := s.pod().ResourceVersion; now != version {
		t.Errorf("version %s became %s, and nothing was to be said", version, now)
	}
}
