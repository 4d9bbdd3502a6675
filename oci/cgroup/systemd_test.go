package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/orlop/orlop/test/kernel"
)

// A pod's slice that came with its scope goes with the pod, as a unit of systemd, too; the slice around it stays.
func TestSystemdSlice(t *testing.T) {
	kernel.Require(t, kernel.Root, kernel.Systemd)
	h, err := Detect(true)
	if err != nil {
		t.Fatal(err)
	}
	outer := fmt.Sprintf("orloptest%d", os.Getpid())
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", outer+".slice").Run() })
	for _, pod := range []string{outer + "-poda.slice", outer + "-podb.slice"} {
		if made, err := h.EnsurePod(pod); err != nil || len(made) != 0 {
			t.Fatalf("%v, %v", made, err)
		}
		dirs := dirsOf(t, h, outer+".slice", pod)
		if missing, err := h.Missing(pod); err != nil || !slices.Equal(missing, dirs[2-len(missing):]) || len(missing) == 0 {
			t.Errorf("missing: %v, %v", missing, err)
		}
		if err := h.Remove(dirs); err != nil { // nothing was ever started in it
			t.Error(err)
		}
		scope, err := exec.Command("systemd-run", "--scope", "--quiet", "--slice="+pod, "cat", "/proc/self/cgroup").CombinedOutput()
		if err != nil || !strings.Contains(string(scope), dirs[1]+"/") {
			t.Fatalf("%s, %v; want it in %s", scope, err, dirs[1])
		}
		if missing, err := h.Missing(pod); err != nil || len(missing) != 0 {
			t.Errorf("missing: %v, %v", missing, err)
		}
		if err := h.Remove(dirs); err != nil {
			t.Fatal(err)
		}
		if loaded(t, pod) {
			t.Errorf("%s is still loaded", pod)
		}
		if _, err := os.Stat(filepath.Join(h.root, h.finder(), dirs[1])); !os.IsNotExist(err) {
			t.Errorf("%s: %v", dirs[1], err)
		}
		if !loaded(t, outer+".slice") {
			t.Errorf("the slice of all pods was stopped")
		}
	}
}

// A slice in which somebody is at work is left alone.
func TestSystemdSliceInUse(t *testing.T) {
	kernel.Require(t, kernel.Root, kernel.Systemd)
	h, err := Detect(true)
	if err != nil {
		t.Fatal(err)
	}
	slice := fmt.Sprintf("orloptestused%d.slice", os.Getpid())
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", slice).Run() })
	cmd := exec.Command("systemd-run", "--scope", "--quiet", "--slice="+slice, "sh", "-c", "echo; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	dirs := dirsOf(t, h, slice)
	if err := h.Remove(dirs); err != nil {
		t.Error(err)
	}
	if pids, err := h.Processes(dirs[0]); err != nil || len(pids) != 1 {
		t.Errorf("%v, %v", pids, err)
	}
}

func dirsOf(t *testing.T, h Host, parents ...string) (dirs []string) {
	for _, parent := range parents {
		dir, err := h.Dir(parent)
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

func loaded(t *testing.T, unit string) bool {
	out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", unit).CombinedOutput()
	if err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	return strings.Contains(string(out), unit)
}
