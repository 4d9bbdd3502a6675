package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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

// leafPrefix begins the name of each leaf.
const leafPrefix = "exec-"

// MakeLeaf makes a leaf below the cgroups of a container. On cgroup v2 no controller is enabled in it, which the
// kernel allows beside processes in the parent (cgroups(7), "no internal processes").
func MakeLeaf(cgroups map[string]string, name string) (Leaf, error) {
	base, controller, ok := leafBase(cgroups)
	if !ok {
		return Leaf{}, errors.New("no hierarchy for an exec's cgroup")
	}
	name = leafPrefix + name
	l := Leaf{filepath.Join(base, name), map[string]string{controller: name}}
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		return Leaf{}, err
	}
	return l, nil
}

// leafBase is the directory below which a container's leaves are, and its hierarchy.
func leafBase(cgroups map[string]string) (base, controller string, ok bool) {
	if base := Unified(cgroups); base != "" {
		return base, "", true
	}
	for _, controller := range leafControllers {
		if base, ok := cgroups[controller]; ok {
			return base, controller, true
		}
	}
	return "", "", false
}

// Leaves are those of execs that have not ended, as far as anybody knows: of a process that was killed.
func Leaves(cgroups map[string]string) []Leaf {
	base, _, ok := leafBase(cgroups)
	if !ok {
		return nil
	}
	var leaves []Leaf
	entries, _ := os.ReadDir(base) // none if it is gone
	for _, entry := range entries {
		l := Leaf{dir: filepath.Join(base, entry.Name())}
		if strings.HasPrefix(entry.Name(), leafPrefix) && !l.released() {
			leaves = append(leaves, l)
		}
	}
	return leaves
}

// Frozen tells whether a process that is started in a container of these cgroups would stop at once.
func Frozen(cgroups map[string]string) bool {
	dir := Unified(cgroups)
	if dir == "" {
		dir = cgroups["freezer"]
	}
	return dir != "" && cgroup.Frozen(dir)
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

// Remove reports whether the leaf is gone: there must be no process in it.
func (l Leaf) Remove() bool {
	if l.dir == "" {
		return true
	}
	err := unix.Rmdir(l.dir)
	return err == nil || errors.Is(err, unix.ENOENT)
}

// releasedMark is an attribute of a leaf that could not be removed after its exec.
const releasedMark = "trusted.orlop.released"

// Release removes the leaf of an exec that has ended by itself. Processes that outlive it are the container's to end, so
// they move there. If they can't, as where the container has made cgroups of its own, the leaf stays with them.
func (l Leaf) Release() error {
	if l.Remove() {
		return nil
	}
	err := cgroup.Move(l.dir, filepath.Dir(l.dir))
	if l.Remove() {
		return nil
	}
	return errors.Join(fmt.Errorf("cgroup %s is in use", l.dir), err, unix.Setxattr(l.dir, releasedMark, nil, 0))
}

func (l Leaf) released() bool {
	_, err := unix.Getxattr(l.dir, releasedMark, nil)
	return err == nil
}
