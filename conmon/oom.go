package conmon

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// OOM is where the kernel counts the processes of a container that it killed for lack of memory.
type OOM struct {
	// Path is the cgroup's memory.events (v2) or memory.oom_control (v1, since Linux 4.13); "" if there is none.
	Path string `json:"path,omitempty"`
	// Parent is the memory.events of the cgroup above, "" on v1: systemd removes a scope as soon as its last process
	// ends, and the count with it, but the pod's cgroup counts its containers' kills, too, and stays.
	Parent string `json:"parent,omitempty"`
	// Before is what the parent had counted when the container was made.
	Before uint64 `json:"before,omitempty"`
}

// WatchOOM begins to count for a cgroup of v2, by its directory.
func WatchOOM(dir string) OOM {
	o := OOM{Path: filepath.Join(dir, "memory.events"), Parent: filepath.Join(filepath.Dir(dir), "memory.events")}
	o.Before, _ = oomKills(o.Parent) // nothing if it does not count
	return o
}

// killed tells whether lack of memory is why the container ended with e. The parent's count is of all containers of the
// pod, so that it is asked only if the container's own is gone, and only for one that was killed.
func (o OOM) killed(e Exit) bool {
	if o.Path == "" || e.Code == 0 { // a process that lost a child to the kernel and still succeeded was not killed
		return false
	}
	if n, ok := oomKills(o.Path); ok {
		return n > 0
	}
	if o.Parent == "" || e.Code != 128+int(unix.SIGKILL) {
		return false
	}
	n, ok := oomKills(o.Parent)
	return ok && n > o.Before
}

// oomKills reads a count; all of the files have a line "oom_kill N".
func oomKills(path string) (count uint64, ok bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(data) {
		if n, found := bytes.CutPrefix(line, []byte("oom_kill ")); found {
			count, err = strconv.ParseUint(string(bytes.TrimSpace(n)), 10, 64)
			return count, err == nil
		}
	}
	return 0, false
}
