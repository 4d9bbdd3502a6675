package store

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/testing/protocmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func samplePod(id string) *Pod {
	return &Pod{
		ID: PodID(id), State: PodReady, Handler: "orlop", CgroupParent: "/orlop/pod-" + id,
		CreatedAt: time.Unix(1, 2).UTC(),
		Config: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u", Attempt: 3},
			Labels:   map[string]string{"app": "web"},
		},
		CgroupsMade: []string{"/sys/fs/cgroup/pids/orlop"},
		IPs:         []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")},
		Timings:     Timings{"network": time.Millisecond},
		Resources:   &Resources{&cri.LinuxContainerResources{CpuShares: 2}},
		Pending:     &Pending{Err: "busy", Since: time.Unix(3, 0).UTC(), Tries: 2},
	}
}

func sampleContainer(id string) *Container {
	return &Container{
		ID: ContainerID(id), Pod: "p", State: ContainerExited, CreatedAt: time.Unix(1, 0).UTC(),
		Config:      &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "c"}, Args: []string{"a", "\x00b"}},
		MountImages: map[int]string{1: "sha256:1"},
		User:        User{UID: 1, GID: 2, Groups: []uint32{3}},
		Exit:        &Exit{Code: 137, Reason: "OOMKilled", FinishedAt: time.Unix(9, 0).UTC()},
	}
}

var sameRecord = cmp.Options{protocmp.Transform(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}

func TestRecordsSurviveAReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records")
	s := open(t, path)
	pod, ctr := samplePod("a"), sampleContainer("b")
	for _, err := range []error{
		s.PutPod(pod), s.PutPod(samplePod("gone")), s.PutContainer(ctr), s.PutContainer(sampleContainer("gone")),
		s.DeletePod("gone"), s.DeleteContainer("gone"), s.DeletePod("never was"), s.PutMeta("boot", "1"), s.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, path)
	got, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	want := Loaded{Pods: []*Pod{pod}, Containers: []*Container{ctr}}
	if d := cmp.Diff(want, got, sameRecord, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	if v, err := s.Meta("boot"); v != "1" || err != nil {
		t.Errorf("meta = %q, %v", v, err)
	}
}

func TestUnreadableRecordIsPutAsideAndReportedOnce(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records"))
	if err := s.PutPod(samplePod("good")); err != nil {
		t.Fatal(err)
	}
	if err := s.apply(podBucket, "bad", []byte(`{"record":{"id":7}}`)); err != nil {
		t.Fatal(err)
	}
	for i, bad := range []int{1, 0} {
		l, err := s.Load()
		if err != nil || len(l.Pods) != 1 || len(l.Unreadable) != bad {
			t.Errorf("load %d: %d pods, unreadable %v, %v", i, len(l.Pods), l.Unreadable, err)
		}
	}
	if err := s.db.View(func(tx *bolt.Tx) error {
		if v := tx.Bucket(unreadableBucket).Get([]byte("pods/bad")); v == nil {
			t.Error("the bytes of the unreadable record are lost")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestChangesAtTheSameTimeAreAllWritten(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records"))
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			if err := s.PutPod(samplePod(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	l, err := s.Load()
	if err != nil || len(l.Pods) != 100 {
		t.Fatalf("%d pods, %v", len(l.Pods), err)
	}
}

func TestAfterCloseAChangeIsRefused(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "records"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.PutPod(samplePod("a")); !errors.Is(err, ErrClosed) {
		t.Errorf("put after close: %v", err)
	}
}

func TestPodMoves(t *testing.T) {
	states := []PodState{PodCreating, PodReady, PodStopping, PodNotReady, PodRemoving}
	allowed := map[string]bool{
		"creating ready": true, "creating removing": true, "ready stopping": true, "stopping notready": true,
		"stopping removing": true, "notready removing": true,
	}
	for _, from := range states {
		for _, to := range states {
			p := &Pod{State: from}
			next, err := p.Move(to)
			if ok := allowed[string(from)+" "+string(to)]; (err == nil) != ok || ok && next.State != to || !ok && !errors.Is(err, ErrState) {
				t.Errorf("%s to %s: %v", from, to, err)
			}
			if p.State != from {
				t.Errorf("%s to %s changed the record itself", from, to)
			}
		}
	}
}

func TestContainerMoves(t *testing.T) {
	states := []ContainerState{ContainerCreating, ContainerCreated, ContainerRunning, ContainerExited, ContainerRemoving}
	allowed := map[string]bool{
		"creating created": true, "creating removing": true, "created running": true, "created exited": true,
		"running exited": true, "exited removing": true,
	}
	for _, from := range states {
		for _, to := range states {
			c := &Container{State: from}
			next, err := c.Move(to)
			if ok := allowed[string(from)+" "+string(to)]; (err == nil) != ok || ok && next.State != to || !ok && !errors.Is(err, ErrState) {
				t.Errorf("%s to %s: %v", from, to, err)
			}
		}
	}
}

func BenchmarkPutContainer(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "records"))
	for b.Loop() {
		if err := s.PutContainer(sampleContainer("x")); err != nil {
			b.Fatal(err)
		}
	}
}
