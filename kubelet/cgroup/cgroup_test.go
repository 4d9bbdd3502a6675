package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"
	k8sresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/resource"
	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

func TestNames(t *testing.T) {
	p := &v1.Pod{Status: v1.PodStatus{QOSClass: v1.PodQOSBurstable}}
	p.UID = "a-b"
	for _, tt := range []struct {
		cfg          Config
		parent, path string
	}{
		{Config{}, "/kubepods/burstable/poda-b", "/kubepods/burstable/poda-b"},
		{Config{Systemd: true}, "kubepods-burstable-poda_b.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice"},
		{Config{Disabled: true}, "/", ""},
	} {
		m, err := New(tt.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Parent(p); got != tt.parent {
			t.Errorf("%+v: parent %q, want %q", tt.cfg, got, tt.parent)
		}
		if tt.path != "" && m.Path(p) != tt.path {
			t.Errorf("%+v: path %q, want %q", tt.cfg, m.Path(p), tt.path)
		}
		if tt.cfg.Disabled {
			continue
		}
		if uid, ok := m.uid(filepath.Base(m.Path(p))); !ok || uid != "a-b" {
			t.Errorf("%+v: UID %q, %v", tt.cfg, uid, ok)
		}
	}
	if _, err := New(Config{Root: "/no/such/cgroup"}); err == nil {
		t.Error("a root that is not there was taken")
	}
}

// TestTree makes the tree on the kernel, changes a pod's share, and removes a pod that still runs.
func TestTree(t *testing.T) {
	kernel.Require(t, kernel.Root)
	root := fmt.Sprintf("/orlop-test-kubelet-%d", os.Getpid())
	makeRoot(t, root)
	m, err := New(Config{Root: root, PodPids: 50})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(v1.ResourceList{v1.ResourceCPU: k8sresource.MustParse("2"), v1.ResourceMemory: k8sresource.MustParse("1Gi")}); err != nil {
		t.Fatal(err)
	}
	p := &v1.Pod{Status: v1.PodStatus{QOSClass: v1.PodQOSBurstable}}
	p.UID = "u1"
	for _, memory := range []int64{64 << 20, 128 << 20, 0} {
		if err := m.Ensure(p, resource.Pod{Shares: 512, Quota: 50_000, Memory: memory}); err != nil {
			t.Fatal(err)
		}
		if got := memoryLimit(t, m.Path(p)); memory > 0 && got != fmt.Sprint(memory) {
			t.Errorf("memory limit %s, want %d", got, memory)
		} else if memory == 0 && (got == fmt.Sprint(128<<20)) {
			t.Error("a limit that was taken away is still there")
		}
	}
	if uids, err := m.Pods(); err != nil || !slices.Equal(uids, []types.UID{"u1"}) {
		t.Errorf("%v, %v", uids, err)
	}
	sleeper := exec.Command("sleep", "100")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	hierarchies, err := filepath.Glob(filepath.Join(mount, "*", m.Path(p)))
	if V2() {
		hierarchies = dirs(m.Path(p))
	}
	if err != nil || len(hierarchies) == 0 {
		t.Fatalf("the pod's cgroup: %v", err)
	}
	for _, dir := range hierarchies {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Appendf(nil, "%d", sleeper.Process.Pid), 0); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- sleeper.Wait() }()
	if err := m.Remove("u1"); err != nil {
		t.Fatal(err)
	}
	<-ended
	if exists(m.Path(p)) {
		t.Error("the pod's cgroup is left")
	}
	if err := m.Remove("u1"); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func memoryLimit(t *testing.T, path string) string {
	t.Helper()
	name := filepath.Join(mount, "memory", path, "memory.limit_in_bytes")
	if V2() {
		name = filepath.Join(mount, path, "memory.max")
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// makeRoot makes a cgroup for the test in every hierarchy, and removes it with all that is below.
func makeRoot(t *testing.T, name string) {
	t.Helper()
	roots := []string{mount}
	if !V2() {
		roots = nil
		entries, err := os.ReadDir(mount)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() {
				roots = append(roots, filepath.Join(mount, e.Name()))
			}
		}
	}
	for _, root := range roots {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			var all []string
			_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					all = append(all, path)
				}
				return nil
			})
			for _, d := range slices.Backward(all) {
				if err := syscall.Rmdir(d); err != nil {
					t.Errorf("remove %s: %v", d, err)
				}
			}
		})
	}
}
