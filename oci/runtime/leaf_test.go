package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

// container makes the cgroup that a leaf would be in, as a container has it.
func container(t *testing.T) (dir string, cgroups map[string]string) {
	t.Helper()
	kernel.Require(t, kernel.Root)
	name := fmt.Sprintf("orlop-test-leaf-%d", os.Getpid())
	for controller, root := range map[string]string{"freezer": "/sys/fs/cgroup/freezer", "": "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := kernel.RemoveCgroup(name); err != nil {
				t.Error(err)
			}
		})
		return dir, map[string]string{controller: dir}
	}
	kernel.Skip(t, "there is no cgroup to make")
	return "", nil
}

func sleeper(t *testing.T, dir string) (pid int) {
	t.Helper()
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestRelease(t *testing.T) {
	dir, cgroups := container(t)
	l, err := MakeLeaf(cgroups, "1-1")
	if err != nil {
		t.Fatal(err)
	}
	pid := sleeper(t, l.dir)
	if second, err := MakeLeaf(cgroups, "1-1"); err == nil || second.dir != "" {
		t.Errorf("another leaf of that name: %v, %v", second, err)
	}
	if found := Leaves(cgroups); len(found) != 1 || found[0].dir != l.dir {
		t.Errorf("leaves %v", found)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(l.dir); err == nil {
		t.Error("the leaf stays")
	}
	if data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err != nil || string(data) != strconv.Itoa(pid)+"\n" {
		t.Errorf("in the container: %q, %v", data, err)
	}
}

// A leaf whose processes can't move stays with them, and is not taken for that of an exec under way.
func TestReleaseOfNested(t *testing.T) {
	_, cgroups := container(t)
	l, err := MakeLeaf(cgroups, "1-1")
	if err != nil {
		t.Fatal(err)
	}
	nested := filepath.Join(l.dir, "nested")
	if err := os.Mkdir(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	sleeper(t, nested)
	if err := l.Release(); err == nil {
		t.Error("released")
	}
	if found := Leaves(cgroups); len(found) != 0 {
		t.Errorf("leaves %v", found)
	}
	if err := cgroup.Kill(l.dir); err != nil {
		t.Error(err)
	}
}
