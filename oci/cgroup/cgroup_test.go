package cgroup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/test/kernel"
)

func TestPaths(t *testing.T) {
	for _, tt := range []struct {
		systemd           bool
		parent, path, dir string // of container "c1"; "" for an error
	}{
		{false, "/kubepods/podx", "/kubepods/podx/orlop-c1", "/kubepods/podx/orlop-c1"},
		{false, "/a//b/", "/a/b/orlop-c1", "/a/b/orlop-c1"},
		{false, "", "", ""},
		{false, "/", "", ""},
		{false, "relative", "", ""},
		{false, "/a/../..", "", ""},
		{false, "/a\nb", "", ""},
		{false, "/a/pod.slice", "", ""},
		{true, "kubepods-pod1.slice", "kubepods-pod1.slice:orlop:c1", "/kubepods.slice/kubepods-pod1.slice/orlop-c1.scope"},
		{true, "/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:orlop:c1", "/kubepods.slice/kubepods-pod1.slice/orlop-c1.scope"},
		{true, "-.slice", "-.slice:orlop:c1", "/orlop-c1.scope"},
		{true, "kubepods--pod1.slice", "", ""},
		{true, "-pod1.slice", "", ""},
		{true, "/kubepods/podx", "", ""},
		{true, ".slice", "", ""},
	} {
		h := Host{Systemd: tt.systemd}
		path, err := h.ContainerPath(tt.parent, "c1")
		if path != tt.path || errors.Is(err, ErrInvalid) != (tt.path == "") {
			t.Errorf("ContainerPath(%q) = %q, %v; want %q", tt.parent, path, err, tt.path)
		}
		if tt.path == "" {
			continue
		}
		if dir, err := h.Dir(path); dir != tt.dir || err != nil {
			t.Errorf("Dir(%q) = %q, %v; want %q", path, dir, err, tt.dir)
		}
	}
	for _, bad := range []string{"a.slice:orlop", "a.slice::x", "a.slice:orlop:", "a.slice:orlop:../x", "a:b:c"} {
		if dir, err := (Host{Systemd: true}).Dir(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("Dir(%q) = %q, %v", bad, dir, err)
		}
	}
}

// FuzzDir finds no path that leaves the hierarchy.
func FuzzDir(f *testing.F) {
	f.Add("/a/b", false)
	f.Add("a-b.slice:orlop:c", true)
	f.Fuzz(func(t *testing.T, path string, systemd bool) {
		dir, err := Host{Systemd: systemd}.Dir(path)
		if err == nil && (!strings.HasPrefix(dir, "/") || dir != filepath.Clean(dir)) {
			t.Errorf("%q is at %q", path, dir)
		}
	})
}

// files makes a cgroup file system of plain files.
func files(t *testing.T, content map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range content {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestReadV2(t *testing.T) {
	root := files(t, map[string]string{
		"cgroup.controllers":    "cpuset cpu io memory pids\n",
		"a/cpu.stat":            "usage_usec 1500\nuser_usec 1000\n",
		"a/cpu.pressure":        "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
		"a/memory.current":      "1000\n",
		"a/memory.max":          "5000\n",
		"a/memory.stat":         "anon 300\nfile 700\ninactive_file 400\npgfault 12\npgmajfault 3\n",
		"a/memory.swap.current": "10\n",
		"a/memory.swap.max":     "max\n",
		"a/pids.current":        "4\n",
		"a/pids.max":            "max\n",
	})
	h, err := detect(root, true, false)
	if err != nil || !h.Controllers["memory"] || !h.Controllers["devices"] || h.Controllers["hugetlb"] {
		t.Fatalf("%+v, %v", h, err)
	}
	got, err := h.Read("/a")
	if err != nil {
		t.Fatal(err)
	}
	want := &Stats{
		Time: got.Time,
		CPU: &CPU{UsageNanos: 1500000, PSI: &PSI{
			Some: PSILine{TotalMicros: 1234, Avg10: 1.5, Avg60: 0.25}, Full: PSILine{TotalMicros: 7},
		}},
		Memory: &Memory{
			UsageBytes: 1000, WorkingSetBytes: 600, AvailableBytes: 4400, RSSBytes: 300, PageFaults: 12, MajorPageFaults: 3, LimitBytes: 5000,
		},
		Swap: &Swap{UsageBytes: 10}, PIDs: &PIDs{Current: 4}, Processes: 4,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := h.Read("/gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
}

func TestReadV1(t *testing.T) {
	root := files(t, map[string]string{
		"cpu,cpuacct/cgroup.procs": "", "memory/cgroup.procs": "", "pids/cgroup.procs": "", "systemd/cgroup.procs": "",
		"cpu,cpuacct/a/cpuacct.usage":          "123456\n",
		"memory/a/memory.usage_in_bytes":       "1000\n",
		"memory/a/memory.limit_in_bytes":       "9223372036854771712\n",
		"memory/a/memory.stat":                 "rss 1\ntotal_rss 300\ntotal_inactive_file 2000\ntotal_pgfault 12\ntotal_pgmajfault 3\n",
		"memory/a/memory.memsw.usage_in_bytes": "1100\n",
		"pids/a/pids.current":                  "2\n",
		"pids/a/pids.max":                      "50\n",
	})
	if err := errors.Join(os.Symlink("cpu,cpuacct", root+"/cpu"), os.Symlink("cpu,cpuacct", root+"/cpuacct")); err != nil {
		t.Fatal(err)
	}
	h, err := detect(root, false, false)
	slices.Sort(h.hierarchies)
	if err != nil || !slices.Equal(h.hierarchies, []string{"cpu,cpuacct", "memory", "pids", "systemd"}) || h.Controllers["systemd"] || !h.Controllers["cpuacct"] {
		t.Fatalf("%+v, %v", h, err)
	}
	got, err := h.Read("/a")
	if err != nil {
		t.Fatal(err)
	}
	want := &Stats{
		Time: got.Time, CPU: &CPU{UsageNanos: 123456},
		Memory: &Memory{UsageBytes: 1000, RSSBytes: 300, PageFaults: 12, MajorPageFaults: 3},
		Swap:   &Swap{UsageBytes: 100}, PIDs: &PIDs{2, 50}, Processes: 2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := h.Read("/gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
}

// live is a cgroup of the kernel that vanishes with the test.
func live(t testing.TB) (Host, string) {
	t.Helper()
	kernel.Require(t, kernel.Root)
	h, err := Detect(false)
	if err != nil {
		t.Fatal(err)
	}
	parent := fmt.Sprintf("/orlop-test-%d/pod", os.Getpid())
	made, err := h.EnsurePod(parent)
	if err != nil || len(made) != 2 {
		t.Fatalf("%v, %v", made, err)
	}
	t.Cleanup(func() {
		wait(t, "the cgroups to go", func() bool { return remove(t, h, made...) })
	})
	return h, parent
}

// remove tells whether nothing is left of cgroups. A process that has ended may be counted in one hierarchy a moment
// longer than in another, and so keep a directory there.
func remove(t testing.TB, h Host, dirs ...string) bool {
	t.Helper()
	if err := h.Remove(dirs); err != nil {
		t.Error(err)
	}
	return !slices.ContainsFunc(h.hierarchies, func(hierarchy string) bool {
		_, err := os.Stat(h.path(hierarchy, dirs[0]))
		return err == nil
	})
}

func TestEnsurePod(t *testing.T) {
	h, parent := live(t)
	if made, err := h.EnsurePod(parent); err != nil || len(made) != 0 {
		t.Errorf("a repeat made %v, %v", made, err)
	}
	stats, err := h.Read(parent)
	if err != nil {
		t.Fatal(err)
	}
	if (stats.Memory != nil) != h.Controllers["memory"] || (stats.PIDs != nil) != h.Controllers["pids"] || stats.CPU == nil {
		t.Errorf("the pod is not counted: %+v with %v", stats, h.Controllers)
	}
	if err := h.Remove([]string{"/no/such/cgroup"}); err != nil {
		t.Error(err)
	}
}

// On v2 each level on the way gets what its parent has; what was given is not given again.
func TestHandDown(t *testing.T) {
	root := files(t, map[string]string{
		"cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": "cpu\n",
		"a/cgroup.controllers": "cpu memory\n", "a/cgroup.subtree_control": "cpu memory\n",
	})
	h, err := detect(root, true, false)
	if err != nil {
		t.Fatal(err)
	}
	if missing, err := h.Missing("/a/b/c"); err != nil || !slices.Equal(missing, []string{"/a/b", "/a/b/c"}) {
		t.Errorf("missing: %v, %v", missing, err)
	}
	if made, err := h.EnsurePod("/a/b/c"); err != nil || !slices.Equal(made, []string{"/a/b", "/a/b/c"}) {
		t.Errorf("%v, %v", made, err)
	}
	for file, want := range map[string]string{"cgroup.subtree_control": "+memory +pids", "a/cgroup.subtree_control": "cpu memory\n"} {
		if got, err := os.ReadFile(filepath.Join(root, file)); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", file, got, err, want)
		}
	}
}

// On v1 a cgroup that somebody has made in some hierarchies alone is his in all of them, and stays.
func TestMissingV1(t *testing.T) {
	root := files(t, map[string]string{
		"cpu/cgroup.procs": "", "cpu/theirs/cgroup.procs": "", "devices/cgroup.procs": "", "freezer/cgroup.procs": "",
	})
	h, err := detect(root, false, false)
	if err != nil {
		t.Fatal(err)
	}
	if missing, err := h.Missing("/theirs/ours"); err != nil || !slices.Equal(missing, []string{"/theirs/ours"}) {
		t.Errorf("missing: %v, %v", missing, err)
	}
}

// killable is the directory of a cgroup in the hierarchy that can be frozen.
func killable(h Host, dir string) string {
	if h.V2 {
		return h.path("", dir)
	}
	return h.path("freezer", dir)
}

// join starts a shell in the cgroup at dir. It runs the script when the file is closed, so that no child of it is born
// in one hierarchy before the shell has come to the next.
func join(t *testing.T, h Host, dir, script string) (*exec.Cmd, io.Closer) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read go; "+script)
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // also if the test has failed
		_ = errors.Join(Kill(killable(h, dir)), cmd.Process.Kill(), cmd.Wait())
	})
	for _, hierarchy := range h.hierarchies {
		if err := os.WriteFile(filepath.Join(h.path(hierarchy, dir), "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0); err != nil {
			t.Fatal(err)
		}
	}
	return cmd, hold
}

// count is the number of processes in a cgroup and below it.
func count(t *testing.T, h Host, dir string) int {
	t.Helper()
	pids, err := h.Processes(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(pids)
}

func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestKill(t *testing.T) {
	h, parent := live(t)
	child := filepath.Join(parent, "orlop-c1")
	if _, err := h.EnsurePod(child); err != nil {
		t.Fatal(err)
	}
	cmd, hold := join(t, h, child, "sleep 100 & sleep 100 & wait")
	if err := h.Remove([]string{child}); err != nil { // in use: left alone
		t.Error(err)
	}
	if pids, err := h.Processes(parent); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("%v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	hold.Close()
	wait(t, "the shell's children", func() bool { return count(t, h, parent) == 3 })
	if err := Kill(killable(h, parent)); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGKILL {
		t.Errorf("%v", cmd.ProcessState)
	}
	wait(t, "every hierarchy to let go", func() bool { return remove(t, h, child) })
	if err := Kill("/no/such/cgroup"); err != nil {
		t.Error(err)
	}
}

// What an exec leaves in its leaf moves to its container's cgroup. No controller is enabled below that one, or cgroup v2 would
// let no process into it.
func TestMoveAndFreeze(t *testing.T) {
	h, parent := live(t)
	container := filepath.Join(parent, "orlop-c1")
	leaf := filepath.Join(container, "exec-1")
	if _, err := h.EnsurePod(container); err != nil {
		t.Fatal(err)
	}
	if _, err := h.makeLevel(leaf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		wait(t, "the cgroups to go", func() bool { return remove(t, h, leaf, container) && remove(t, h, container) })
	})
	cmd, hold := join(t, h, leaf, "sleep 100 & sleep 100 & wait")
	hold.Close()
	wait(t, "the shell's children", func() bool { return count(t, h, container) == 3 })
	from, to := killable(h, leaf), killable(h, container)
	if err := Move(from, to); err != nil {
		t.Error(err)
	}
	if left, err := processes(from); err != nil || len(left) > 0 {
		t.Errorf("not moved: %v, %v", left, err)
	}
	if moved, err := processes(to); err != nil || len(moved) != 3 {
		t.Errorf("moved: %v, %v", moved, err)
	}
	for _, frozen := range []bool{true, false} {
		freeze(to, frozen)
		wait(t, fmt.Sprintf("frozen %v", frozen), func() bool { return Frozen(to) == frozen && Frozen(from) == frozen })
	}
	_ = Kill(to)
	_ = cmd.Wait()
}

// A process that forks as fast as it can is killed with its children, and one that is frozen, too.
func TestKillForkers(t *testing.T) {
	h, parent := live(t)
	cmd, hold := join(t, h, parent, "while :; do (sleep 100 &) ; done")
	for _, hierarchy := range h.hierarchies {
		if hierarchy == "" || hierarchy == "pids" {
			if err := os.WriteFile(filepath.Join(h.path(hierarchy, parent), "pids.max"), []byte("50"), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	hold.Close()
	wait(t, "the shell's children", func() bool { return count(t, h, parent) > 10 })
	freeze(killable(h, parent), true)
	if err := Kill(killable(h, parent)); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	wait(t, "all to be killed", func() bool { return count(t, h, parent) == 0 })
}

func BenchmarkRead(b *testing.B) {
	h, parent := live(b)
	for b.Loop() {
		if _, err := h.Read(parent); err != nil {
			b.Fatal(err)
		}
	}
}
