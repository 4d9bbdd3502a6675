package runtime

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/oci/cgroup"
)

// Leaf is a cgroup below a container's for one exec, so that the exec can be killed with all that it started. It
// limits nothing: limits are the container's.
type Leaf struct {
	dir string
	sub map[string]string // as libcontainer wants it
}

// leafControllers are those of cgroup v1 in whose hierarchy a leaf is made: one is enough to find the processes. The
// freezer's keeps them from forking while they are killed.
var leafControllers = []string{"freezer", "pids", "name=systemd"}

// MakeLeaf makes a leaf below the cgroups of a container. On cgroup v2 no controller is enabled in it, which the
// kernel allows beside processes in the parent (cgroups(7), "no internal processes").
func MakeLeaf(cgroups map[string]string, name string) (Leaf, error) {
	if base := Unified(cgroups); base != "" {
		l := Leaf{filepath.Join(base, name), map[string]string{"": name}}
		return l, os.Mkdir(l.dir, 0o755)
	}
	for _, controller := range leafControllers {
		if base, ok := cgroups[controller]; ok {
			l := Leaf{filepath.Join(base, name), map[string]string{controller: name}}
			return l, os.Mkdir(l.dir, 0o755)
		}
	}
	return Leaf{}, errors.New("no hierarchy for an exec's cgroup")
}

// Unified is the one directory of a container on a machine with cgroup v2; "" on others, also on hybrid ones, where
// the unified hierarchy has no controllers.
func Unified(cgroups map[string]string) string {
	if len(cgroups) != 1 {
		return ""
	}
	return cgroups[""]
}

// Kill ends every process in the leaf.
func (l Leaf) Kill() error {
	if l.dir == "" {
		return nil
	}
	return cgroup.Kill(l.dir)
}

// Remove removes the leaf. Processes that outlive an exec that was not killed stay in it, and with it; they are then
// the container's to end. It reports whether the leaf is gone.
func (l Leaf) Remove() bool {
	if l.dir == "" {
		return true
	}
	err := unix.Rmdir(l.dir)
	return err == nil || errors.Is(err, unix.ENOENT)
}
