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
	// A process may fork while the list is read: repeat until a pass finds nobody that was not sent SIGKILL yet.
	killed := map[int]bool{}
	for {
		pids, err := h.Processes(dir)
		if err != nil {
			return fmt.Errorf("cgroup %s: %w", dir, err)
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
