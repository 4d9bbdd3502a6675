package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// finder is the hierarchy in which processes are looked for: all hierarchies of v1 have the same ones.
func (h Host) finder() string {
	for _, name := range []string{"", "pids", "systemd", "freezer"} {
		for _, have := range h.hierarchies {
			if have == name {
				return name
			}
		}
	}
	return h.hierarchies[0]
}

// Processes returns the processes in the cgroup at dir (see [Host.Dir]) and below it. None if it is gone.
func (h Host) Processes(dir string) ([]int, error) {
	var pids []int
	root := h.path(h.finder(), dir)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		here, err := processes(path)
		pids = append(pids, here...)
		return err
	})
	return pids, err
}

func processes(path string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if pid > 0 { // 0 is one of another PID namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Kill ends every process in the cgroup at dir and below it. It does not wait until they are gone.
func (h Host) Kill(dir string) error {
	if h.V2 {
		err := os.WriteFile(filepath.Join(h.path("", dir), "cgroup.kill"), []byte("1"), 0) // Linux 5.14
		if err == nil {
			return nil
		}
		if _, serr := os.Stat(h.path("", dir)); errors.Is(serr, fs.ErrNotExist) {
			return nil
		}
	}
	h.freeze(dir, true)
	err := h.killEach(dir)
	h.freeze(dir, false) // also those that were frozen before: a frozen process of v1 doesn't die
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", dir, err)
	}
	return nil
}

// maxPasses bounds how often a list of processes is read that grows while it is read. Those of a frozen cgroup don't
// fork, so that it ends after two or three; without the freezer somebody may fork faster than we kill.
const maxPasses = 100

func (h Host) killEach(dir string) error {
	killed := map[int]bool{}
	for range maxPasses {
		pids, err := h.Processes(dir)
		if err != nil {
			return err
		}
		found := false
		for _, pid := range pids {
			if !killed[pid] {
				found, killed[pid] = true, true
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if !found {
			return nil
		}
	}
	return fmt.Errorf("processes are started faster than they can be killed: %d so far", len(killed))
}

// freeze stops or continues what is in the cgroup at dir and below it. It does not wait: who is about to be frozen
// comes no further than the end of its system call. There may be no freezer.
func (h Host) freeze(dir string, frozen bool) {
	name, state := "freezer.state", map[bool]string{true: "FROZEN", false: "THAWED"}
	hierarchy := "freezer"
	if h.V2 {
		name, state, hierarchy = "cgroup.freeze", map[bool]string{true: "1", false: "0"}, ""
	}
	_ = filepath.WalkDir(h.path(hierarchy, dir), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			_ = os.WriteFile(filepath.Join(path, name), []byte(state[frozen]), 0)
		}
		return nil
	})
}

// Containers returns the IDs of the containers whose cgroups are below a pod's cgroup_parent.
func (h Host) Containers(parent string) ([]string, error) {
	dir, err := h.parentDir(parent)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(h.path(h.finder(), dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", dir, err)
	}
	var ids []string
	for _, entry := range entries {
		if id, ok := strings.CutPrefix(entry.Name(), prefix+"-"); ok && entry.IsDir() {
			ids = append(ids, strings.TrimSuffix(id, ".scope"))
		}
	}
	return ids, nil
}
