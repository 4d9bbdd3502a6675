// Package cgroup names the cgroups of pods and containers, and reads and kills what is in them, on cgroup v1 and v2.
// It makes nothing with the systemd driver: slices are the kubelet's to make or come into being with a container's
// scope, which libcontainer asks systemd for.
package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInvalid is for a cgroup path that can't be used; the text names it.
var ErrInvalid = errors.New("invalid cgroup path")

// Host is what this machine's cgroups are like; found once at start.
type Host struct {
	V2          bool
	Systemd     bool            // the cgroup driver: systemd, else cgroupfs
	Controllers map[string]bool // those that can be used

	root        string   // "/sys/fs/cgroup"
	hierarchies []string // directories below root that have hierarchies; "" is the only one of v2
}

// mountPoint is where cgroups are mounted on all systems in use (systemd, and cgroups(7)).
const mountPoint = "/sys/fs/cgroup"

// Detect looks at /sys/fs/cgroup.
func Detect(systemdDriver bool) (Host, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(mountPoint, &st); err != nil {
		return Host{}, fmt.Errorf("cgroups: %s: %w", mountPoint, err)
	}
	return detect(mountPoint, st.Type == unix.CGROUP2_SUPER_MAGIC, systemdDriver)
}

func detect(root string, v2, systemd bool) (Host, error) {
	h := Host{V2: v2, Systemd: systemd, Controllers: map[string]bool{}, root: root}
	if v2 {
		h.hierarchies = []string{""}
		names, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err != nil {
			return Host{}, fmt.Errorf("cgroups: %w", err)
		}
		for name := range strings.FieldsSeq(string(names)) {
			h.Controllers[name] = true
		}
		h.Controllers["devices"] = true // by BPF
		h.Controllers["freezer"] = true // in the core
		return h, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return Host{}, fmt.Errorf("cgroups: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if _, err := os.Stat(filepath.Join(root, name, "cgroup.procs")); err != nil {
			continue
		}
		if entry.Type()&os.ModeSymlink == 0 { // "cpu" may be a link to "cpu,cpuacct"
			h.hierarchies = append(h.hierarchies, name)
		}
		for controller := range strings.SplitSeq(name, ",") {
			h.Controllers[controller] = true
		}
	}
	delete(h.Controllers, "systemd") // hierarchies without a controller
	delete(h.Controllers, "unified")
	if len(h.hierarchies) == 0 {
		return Host{}, fmt.Errorf("cgroups: none are mounted below %s", root)
	}
	return h, nil
}

// prefix marks the cgroups of our containers.
const prefix = "orlop"

// ContainerPath is a container's CgroupsPath as the OCI spec has it: "/parent/orlop-ID" (cgroupfs) or
// "parent.slice:orlop:ID" (systemd), for a pod's cgroup_parent. An empty or malformed parent is an error that names it.
func (h Host) ContainerPath(parent, id string) (string, error) {
	if _, err := h.parentDir(parent); err != nil {
		return "", err
	}
	if h.Systemd {
		return filepath.Base(parent) + ":" + prefix + ":" + id, nil
	}
	return filepath.Join(parent, prefix+"-"+id), nil
}

// Dir is the cgroup of a CgroupsPath, or of a pod's cgroup_parent, relative to each hierarchy's root.
func (h Host) Dir(cgroupsPath string) (string, error) {
	slice, unit, ok := strings.Cut(cgroupsPath, ":")
	if !ok || !h.Systemd {
		return h.parentDir(cgroupsPath)
	}
	name, id, ok := strings.Cut(unit, ":")
	if !ok || name == "" || id == "" || strings.ContainsAny(unit, "/") {
		return "", fmt.Errorf("%w: %q is not \"slice:prefix:name\"", ErrInvalid, cgroupsPath)
	}
	dir, err := h.parentDir(slice)
	return filepath.Join(dir, name+"-"+id+".scope"), err
}

// parentDir checks a pod's cgroup_parent.
func (h Host) parentDir(parent string) (string, error) {
	slice := strings.HasSuffix(parent, ".slice")
	switch {
	case parent == "":
		return "", fmt.Errorf("%w: cgroup_parent is empty", ErrInvalid)
	case strings.ContainsAny(parent, "\x00\n") || slices.Contains(strings.Split(parent, "/"), ".."):
		return "", fmt.Errorf("%w: cgroup_parent %q leaves its parent", ErrInvalid, parent)
	case h.Systemd && !slice:
		return "", fmt.Errorf("%w: cgroup_parent %q is no slice; the cgroup driver is systemd, so name one such as \"pods.slice\", or set the drivers of client and runtime to the same", ErrInvalid, parent)
	case h.Systemd:
		return expandSlice(filepath.Base(parent))
	case slice:
		return "", fmt.Errorf("%w: cgroup_parent %q is a slice of systemd, and the cgroup driver is cgroupfs; set the drivers of client and runtime to the same", ErrInvalid, parent)
	case !filepath.IsAbs(parent) || filepath.Clean(parent) == "/":
		return "", fmt.Errorf("%w: cgroup_parent %q is not an absolute path below \"/\"", ErrInvalid, parent)
	}
	return filepath.Clean(parent), nil
}

// expandSlice is the path of a slice: each dash is a level (systemd.slice(5)), so "a-b.slice" is in "a.slice".
func expandSlice(slice string) (string, error) {
	name := strings.TrimSuffix(slice, ".slice")
	if name == "-" {
		return "/", nil
	}
	var path, level string
	for part := range strings.SplitSeq(name, "-") {
		if part == "" || strings.Contains(part, "/") { // an empty part would climb to the wrong parent
			return "", fmt.Errorf("%w: %q is not the name of a slice", ErrInvalid, slice)
		}
		level += part
		path += "/" + level + ".slice"
		level += "-"
	}
	return path, nil
}

// Missing returns the cgroups that come into being with a pod, outermost first and as [Host.Dir] has them: by EnsurePod,
// or by systemd, which makes slices with a pod's first scope. It is for a record that is written before, so that a crash
// amid it leaves nothing that nobody knows. A cgroup that is there in some hierarchies of v1 is of another maker (a kubelet
// makes none for devices), who alone removes it.
func (h Host) Missing(parent string) (missing []string, err error) {
	levels, err := h.podLevels(parent)
	if err != nil {
		return nil, err
	}
	for _, level := range levels {
		there := func(hierarchy string) bool {
			_, err := os.Stat(h.path(hierarchy, level))
			return !errors.Is(err, os.ErrNotExist)
		}
		// systemd makes a slice in the hierarchies that its scopes need, and in its own.
		if h.Systemd && !there(h.finder()) || !h.Systemd && !slices.ContainsFunc(h.hierarchies, there) {
			missing = append(missing, level)
		}
	}
	return missing, nil
}

// podLevels are a pod's cgroup and those around it, outermost first.
func (h Host) podLevels(parent string) (levels []string, err error) {
	dir, err := h.parentDir(parent)
	if err != nil {
		return nil, err
	}
	for level := dir; level != "/"; level = filepath.Dir(level) {
		levels = append(levels, level)
	}
	slices.Reverse(levels)
	return levels, nil
}

// EnsurePod makes the pod's cgroup (cgroup_parent) in each hierarchy where it is missing and returns the
// directories that it made, outermost first and as [Host.Dir] has them; they are what Remove is given later. On v2 it
// also has the controllers handed down to it, so that the pod is counted as a whole. With the systemd driver it makes
// nothing: a directory that systemd does not know would lose its limits at systemd's next look.
func (h Host) EnsurePod(parent string) (made []string, err error) {
	levels, err := h.podLevels(parent)
	if err != nil || h.Systemd {
		return nil, err
	}
	for _, level := range levels {
		isNew, err := h.makeLevel(level)
		if isNew {
			made = append(made, level)
		}
		if err != nil {
			return made, fmt.Errorf("cgroup %s: %w", level, err)
		}
		if h.V2 {
			h.handDown(filepath.Dir(level))
		}
	}
	return made, nil
}

func (h Host) makeLevel(dir string) (isNew bool, err error) {
	for _, hierarchy := range h.hierarchies {
		path := h.path(hierarchy, dir)
		err := os.Mkdir(path, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return isNew, err
		}
		isNew = true
		if hierarchy == "cpuset" {
			if err := inheritCpuset(path); err != nil {
				return isNew, err
			}
		}
	}
	return isNew, nil
}

// handDown gives the cgroups below dir all controllers that dir has (cgroups(7), cgroup.subtree_control). One that can't
// be given is left out: a controller is not worth a pod, and processes in dir itself forbid most of them.
func (h Host) handDown(dir string) {
	control := filepath.Join(h.path("", dir), "cgroup.subtree_control")
	has, err := os.ReadFile(filepath.Join(h.path("", dir), "cgroup.controllers"))
	if err != nil {
		return
	}
	given, _ := os.ReadFile(control)
	var missing []string
	for controller := range strings.FieldsSeq(string(has)) {
		if !slices.Contains(strings.Fields(string(given)), controller) {
			missing = append(missing, "+"+controller)
		}
	}
	if len(missing) == 0 || os.WriteFile(control, []byte(strings.Join(missing, " ")), 0) == nil {
		return
	}
	for _, controller := range missing { // the kernel takes all of one write or none
		_ = os.WriteFile(control, []byte(controller), 0)
	}
}

// inheritCpuset gives a new cgroup of v1 its parent's processors and memory nodes: with none, no process can join
// (cpuset(7)).
func inheritCpuset(path string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(path, name), value, 0); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes empty cgroups, innermost first, and succeeds for those that are gone or in use by others. With the
// systemd driver the last of them, which is the pod's own, is ended as a unit if no process is in it.
func (h Host) Remove(made []string) error {
	var all []error
	for i, dir := range slices.Backward(made) {
		var err error
		if h.Systemd && i == len(made)-1 {
			err = h.stopEmptySlice(dir)
		}
		if err = errors.Join(err, h.removeLevel(dir)); err != nil {
			all = append(all, fmt.Errorf("cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(all...)
}

func (h Host) removeLevel(dir string) error {
	for _, hierarchy := range h.hierarchies {
		err := unix.Rmdir(h.path(hierarchy, dir))
		switch {
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOTEMPTY):
		default:
			return os.NewSyscallError("rmdir", err)
		}
	}
	return nil
}

// stopTime bounds how long systemd is waited for.
const stopTime = 10 * time.Second

// stopEmptySlice has systemd end a pod's slice, which came into being with the pod's first scope. Without it systemd
// would keep the unit until the node's next start, and a scope that it has not cleared away yet would keep the cgroup.
// The slices around it are other pods', too, and stay. It is one D-Bus message, left to systemd's own program as it is
// rare: the kubelet ends the slices that it made. It is weak where pods that make slices share one: a container that
// another of them starts in the moment between the look and the end of the slice would end with it.
func (h Host) stopEmptySlice(dir string) error {
	pids, err := h.Processes(dir)
	if err != nil || len(pids) > 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	unit := filepath.Base(dir)
	out, err := exec.CommandContext(ctx, "systemctl", "stop", "--quiet", unit).CombinedOutput()
	if err == nil || bytes.Contains(out, []byte("not loaded")) { // no container was ever started in it
		return nil
	}
	return fmt.Errorf("systemctl stop %s: %w: %s", unit, err, bytes.TrimSpace(out))
}

func (h Host) path(hierarchy, dir string) string { return filepath.Join(h.root, hierarchy, dir) }
