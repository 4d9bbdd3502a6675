package node

import (
	"context"
	"errors"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/internal/kube/kubetest"
)

// TestWaitAttached: a volume may be mounted when the API server has been told that it is in use, and tells that it is attached.
func TestWaitAttached(t *testing.T) {
	s := kubetest.New(t)
	client := connect(t, s)
	inUse := []v1.UniqueVolumeName{}
	m := manager(&engine{network: true}, client, func(c *Config) { c.InUse = func() []v1.UniqueVolumeName { return inUse } })
	ctx := t.Context()
	waited := func(name v1.UniqueVolumeName) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		return m.WaitAttached(ctx, name)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := m.WaitRegistered(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before it is registered: %v", err)
	}
	m.refresh(ctx)
	if err := m.tryRegister(ctx); err != nil {
		t.Fatal(err)
	}
	n, err := m.WaitRegistered(ctx)
	if err != nil || n.Name != "n" || n.UID == "" {
		t.Fatalf("registered: %v, %v", n, err)
	}
	if err := m.WaitReplaced(ctx, "another"); err != nil {
		t.Error(err)
	}
	short, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := m.WaitReplaced(short, n.UID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("replaced by itself: %v", err)
	}
	ended := make(chan error)
	go func() { ended <- m.WaitAttached(ctx, "disk") }()
	attach := func(names ...v1.UniqueVolumeName) {
		found, err := client.Nodes.All().Get(ctx, "n", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		found.Status.VolumesAttached = nil
		for _, name := range names {
			found.Status.VolumesAttached = append(found.Status.VolumesAttached, v1.AttachedVolume{Name: name})
		}
		s.Set(found)
		m.take(found)
	}
	attach("disk")
	if err := waited("disk"); err == nil {
		t.Error("attached, and nobody knows that it is in use")
	}
	inUse = append(inUse, "disk", "other")
	m.refresh(ctx)
	m.send(ctx)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := waited("other"); err == nil {
		t.Error("in use, and not attached")
	}
	found, err := client.Nodes.All().Get(ctx, "n", metav1.GetOptions{})
	if err != nil || len(found.Status.VolumesInUse) != 2 || len(found.Status.VolumesAttached) != 1 {
		t.Errorf("the API server has %+v, %v", found.Status, err)
	}
	inUse = nil
	m.refresh(ctx)
	m.send(ctx)
	if err := waited("disk"); err == nil {
		t.Error("it is not in use any more")
	}
}
