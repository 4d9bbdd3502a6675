package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/keeper"
	"github.com/orlop/orlop/conmon/wire"
	"github.com/orlop/orlop/conmon/worker/logfile"
	"github.com/orlop/orlop/oci/runtime"
)

// record is what a worker must know of a container beside libcontainer's state, and does not keep in memory. It lies
// in the run directory, so a reboot takes it away together with the container.
type record struct {
	ID        string    `json:"id"`
	Pid       int       `json:"pid,omitempty"` // 0 until libcontainer has made the container
	StartedAt time.Time `json:"startedAt,omitzero"`
	LogPath   string    `json:"logPath,omitempty"`
	LogSlot   int       `json:"logSlot"`
	StdinOnce bool      `json:"stdinOnce,omitempty"`
	Systemd   bool      `json:"systemd,omitempty"`
	// CgroupsPath is for cleaning up what was never whole; Cgroups are the directories once it is.
	CgroupsPath string            `json:"cgroupsPath"`
	Cgroups     map[string]string `json:"cgroups,omitempty"`
	OOM         conmon.OOM        `json:"oom,omitzero"`
	SharesPIDs  bool              `json:"sharesPids,omitempty"`
	Process     *rspec.Process    `json:"process"` // what an exec takes its user, environment and rights from
}

// watchOOM finds out where the container's cgroups count.
func watchOOM(cgroups map[string]string) conmon.OOM {
	if dir := runtime.Unified(cgroups); dir != "" {
		return conmon.WatchOOM(dir)
	}
	if dir, ok := cgroups["memory"]; ok {
		return conmon.OOM{Path: filepath.Join(dir, "memory.oom_control")}
	}
	return conmon.OOM{}
}

func (w *Worker) recordDir() string           { return filepath.Join(w.cfg.RunDir, "records") }
func (w *Worker) recordPath(id string) string { return filepath.Join(w.recordDir(), id) }

// unrecord removes what was written down of a container, its exit last: that says that there was one.
func (w *Worker) unrecord(id string) error {
	return errors.Join(removeFile(w.recordPath(id)), conmon.RemoveExit(w.cfg.ExitDir, id))
}

func (w *Worker) saveRecord(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := w.recordPath(r.ID)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return os.Rename(path+".new", path)
}

func (w *Worker) loadRecord(id string) (*record, error) {
	data, err := os.ReadFile(w.recordPath(id))
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	r := new(record)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("record %s: %w", id, err)
	}
	return r, nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// container is what must be in memory of one: descriptors, and who waits.
type container struct {
	id string
	// op is held by create, start and delete, which exclude each other.
	op sync.Mutex

	pid     atomic.Int32 // 0 until it exists, or if only its exit is known
	made    atomic.Bool  // all of what follows is there
	started atomic.Pointer[time.Time]
	wentOn  atomic.Bool // it had gone on to its program when it ended, though a start under way has not noticed yet
	exit    atomic.Pointer[conmon.Exit]
	ended   chan struct{} // closed when exit is set
	endOnce sync.Once

	// Written once, before anybody else sees the container whole.
	oom        conmon.OOM
	sharesPIDs bool
	stdinOnce  bool
	slot       int
	log        *logfile.Log
	copiers    []*logfile.Copier
	copying    sync.WaitGroup
	tap        tap

	mu    sync.Mutex // guards files; who closes one takes it away before
	files map[string]*os.File
}

// Names of descriptors that the keeper holds for a container.
const (
	fileStdin    = "stdin"
	fileStdout   = "stdout" // the end that we read
	fileStderr   = "stderr"
	fileOutSpool = "stdout-spool"
	fileErrSpool = "stderr-spool"
	fileConsole  = "console"
	fileLog      = "log"
	filePidfd    = "pidfd"
	fileStart    = "start" // while it is being started, see runtime.OpenStart
)

const noSlot = -1

func newContainer(id string) *container {
	return &container{id: id, ended: make(chan struct{}), slot: noSlot, files: map[string]*os.File{}}
}

func (c *container) public() conmon.Container {
	out := conmon.Container{ID: c.id, Pid: int(c.pid.Load()), Exit: c.exit.Load()}
	if at := c.started.Load(); at != nil {
		out.StartedAt = *at
	}
	if out.Exit != nil {
		out.Pid = 0
	}
	return out
}

func (c *container) file(name string) *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.files[name]
}

// handOver is what a keeper must know: this process becomes it. It leaves mu locked, so that nobody takes a file away
// to close it, until the process has become the keeper.
func (c *container) handOver() keeper.Held {
	h := keeper.Held{Pid: int(c.pid.Load()), OOM: c.oom, Files: map[string]int{}}
	c.mu.Lock()
	for name, f := range c.files {
		if n, err := keeper.FileNumber(f); err == nil {
			h.Files[name] = n
		}
	}
	return h
}

// hold has the keeper hold what the container holds. Without a keeper that is not an error: this process is about to
// become it.
func (w *Worker) hold(c *container, names ...string) error {
	return w.sendHold(c, keeper.Hold{Names: names})
}

func (w *Worker) sendHold(c *container, h keeper.Hold) error {
	h.ID, h.Pid, h.OOM = c.id, int(c.pid.Load()), c.oom
	files := make([]*os.File, len(h.Names))
	for i, name := range h.Names {
		files[i] = c.file(name)
	}
	if err := w.link.Notify(keeper.MethodHold, h, files...); err != nil && !errors.Is(err, wire.ErrClosed) {
		return fmt.Errorf("keeper: %w", err)
	}
	return nil
}

// drop has the keeper close one descriptor, or all if name is "".
func (w *Worker) drop(id, name string) {
	if err := w.link.Notify(keeper.MethodDrop, keeper.Drop{ID: id, Name: name}); err != nil && !errors.Is(err, wire.ErrClosed) {
		w.log.Error("keeper holds more than it should", "container", id, "err", err)
	}
}

func (c *container) put(name string, f *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files[name] = f
}

// take returns a file, nil if there is none, and forgets it.
func (c *container) take(name string) *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[name]
	delete(c.files, name)
	return f
}

func (c *container) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := make([]string, 0, len(c.files))
	for name := range c.files {
		names = append(names, name)
	}
	return names
}

// copyOutput starts the copying of what the files are for.
func (w *Worker) copyOutput(c *container) error {
	log := w.log.With("container", c.id)
	if f := c.file(fileLog); f != nil {
		c.log = logfile.New(f, w.journal, c.slot)
	}
	if console := c.file(fileConsole); console != nil {
		c.copying.Go(logfile.NewConsole(c.log, console, &c.tap, log).Run)
		return nil
	}
	for i, names := range [][2]string{{fileStdout, fileOutSpool}, {fileStderr, fileErrSpool}} {
		src, spool := c.file(names[0]), c.file(names[1])
		if src == nil || spool == nil {
			continue
		}
		cp, err := logfile.NewCopier(c.log, logfile.Stream(i), src, spool, c.tap.stream(i), log)
		if err != nil {
			return err
		}
		c.copiers = append(c.copiers, cp)
	}
	if c.log != nil {
		c.log.Recover(c.copiers...)
	}
	for _, cp := range c.copiers {
		c.copying.Go(cp.Run)
	}
	return nil
}

// release closes all that is open here for a container: what is read from first, so that the copying ends, and what
// it copies to when it has.
func (c *container) release() {
	c.tap.close()
	for _, name := range []string{fileStdout, fileStderr, fileConsole} {
		if f := c.take(name); f != nil {
			f.Close()
		}
	}
	c.copying.Wait()
	if c.log != nil {
		c.take(fileLog)
		c.log.Close()
	}
	for _, name := range c.names() {
		c.take(name).Close()
	}
}

// pipe makes a pipe of which we keep one end: that one does not block, the other does.
func pipe(keepRead bool) (keep, give *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	ours, theirs := fds[0], fds[1]
	if !keepRead {
		ours, theirs = fds[1], fds[0]
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(ours), "pipe"), os.NewFile(uintptr(theirs), "pipe"), nil
}
