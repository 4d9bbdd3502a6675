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
func (h Host) Processes(dir string) ([]int, error) { return below(h.path(h.finder(), dir)) }

// below returns the processes in the cgroup directory at root and in those below it.
func below(root string) ([]int, error) {
	var pids []int
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

// Kill ends every process in the cgroup directory at path, of any hierarchy, and below it. It does not wait until they
// are gone. It succeeds if the directory is gone.
func Kill(path string) error {
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err == nil { // v2, since Linux 5.14
		return nil
	}
	freeze(path, true)
	err := killEach(path)
	freeze(path, false) // also those that were frozen before: a frozen process of v1 doesn't die
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	return nil
}

// maxPasses bounds how often a list of processes is read that grows while it is read. Those of a frozen cgroup don't
// fork, so that it ends after two or three; without the freezer somebody may fork faster than we kill.
const maxPasses = 100

func killEach(path string) error {
	killed := map[int]bool{}
	for range maxPasses {
		pids, err := below(path)
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

// Move moves the processes of one cgroup directory to another of the same hierarchy.
func Move(from, to string) error {
	for range maxPasses { // those that fork meanwhile leave a child behind
		pids, err := processes(from)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move process %d: %w", pid, err)
			}
		}
	}
	return fmt.Errorf("cgroup %s: processes are started faster than they can be moved", from)
}

// freezers are the files that stop a cgroup, of v1's freezer and of v2, and what they are told.
var freezers = []struct{ name, frozen, thawed string }{
	{"freezer.state", "FROZEN", "THAWED"}, {"cgroup.freeze", "1", "0"},
}

// Frozen tells whether what is started in the cgroup directory at path would stop at once. False if it can't be frozen.
func Frozen(path string) bool {
	for _, f := range freezers {
		state, err := os.ReadFile(filepath.Join(path, f.name))
		if err == nil && strings.TrimSpace(string(state)) != f.thawed {
			return true
		}
	}
	events, _ := os.ReadFile(filepath.Join(path, "cgroup.events")) // of v2, also when a cgroup above is frozen
	return strings.Contains(string(events), "frozen 1\n")
}

// freeze stops or continues what is in the cgroup and below it, if its hierarchy can. It does not wait: who is about
// to be frozen comes no further than the end of its system call.
func freeze(root string, frozen bool) {
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil
		}
		for _, f := range freezers {
			state := f.thawed
			if frozen {
				state = f.frozen
			}
			if file, err := os.OpenFile(filepath.Join(path, f.name), os.O_WRONLY, 0); err == nil {
				_, _ = file.WriteString(state)
				file.Close()
			}
		}
		return nil
	})
}
