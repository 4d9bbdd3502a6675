// Package runtime runs containers by libcontainer, in this process. It keeps nothing in memory that libcontainer's
// state files hold, so any process with the same root can go on with a container.
//
// libcontainer was written for one container per process. What is process-wide in it, and what guards it:
//   - It re-executes /proc/self/exe as "init": the main package must call [Init] first thing.
//   - It marks all descriptors close-on-exec before it forks. All of ours are anyway.
//   - Its messages go to logrus's global logger: [New] sends them to our own.
//   - It waits for its helper processes by pid: nobody in the process may reap children that it did not make itself.
//   - The working directory is read for relative paths: specs with those are refused by oci/spec.
package runtime

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, which the manager lacks otherwise
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // joins namespaces before the Go runtime starts
	"github.com/opencontainers/runc/libcontainer/specconv"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/oci/runtime/filter"
)

// ErrNotExist means that the container is not there, or not whole.
var ErrNotExist = errors.New("container does not exist")

// Runtime is safe for concurrent use, also for one container.
type Runtime struct {
	root    string
	filters filter.Cache
}

// Init is what libcontainer's child does; it does not return if this process is one.
func Init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		filter.Adopt()
		libcontainer.Init()
	}
}

// New keeps containers' states below root, which a reboot must empty.
func New(root string, log *slog.Logger) *Runtime {
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.WarnLevel)
	logrus.AddHook(logHook{log})
	return &Runtime{root: root}
}

// Stdio is what a process gets; nil means /dev/null. With Console, which is one end of a socket pair, the process
// gets a terminal instead, whose master is sent to the other end.
type Stdio struct{ Stdin, Stdout, Stderr, Console *os.File }

// Created is a container whose process waits to be started.
type Created struct {
	Pid int
	// Cgroups are its cgroup directories by controller; "" is the key of the unified hierarchy (see [Unified]).
	Cgroups map[string]string
}

// Create makes a container. If it fails, nothing is left.
func (r *Runtime) Create(id string, spec *rspec.Spec, systemd bool, stdio Stdio) (Created, error) {
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: id, UseSystemdCgroup: systemd, NoNewKeyring: true, Spec: spec,
	})
	if err != nil {
		return Created{}, err
	}
	process, err := newProcess(spec.Process, stdio)
	if err != nil {
		return Created{}, err
	}
	process.Init = true
	c, err := libcontainer.Create(r.root, id, config)
	if err != nil {
		return Created{}, err
	}
	if err := r.start(c, process); err != nil {
		return Created{}, errors.Join(err, c.Destroy())
	}
	state, err := c.State()
	if err != nil {
		return Created{}, errors.Join(err, c.Signal(unix.SIGKILL))
	}
	return Created{Pid: state.InitProcessPid, Cgroups: state.CgroupPaths}, nil
}

// start has libcontainer start a process, with the filter that its seccomp profile stands for.
func (r *Runtime) start(c *libcontainer.Container, process *libcontainer.Process) error {
	if profile := c.Config().Seccomp; profile != nil {
		f, err := r.filters.File(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		process.ExtraFiles = []*os.File{f}
	}
	return c.Start(process)
}

// OpenStart lets the created process run: it waits until somebody reads from its fifo, writes a byte into it and
// executes its program. The file must stay open, in this process or another, until [Started] has told the end: a
// writer without a reader is killed. It takes the place of libcontainer's own start, whose reader ends with the
// process that it is in.
func (r *Runtime) OpenStart(id string) (*os.File, error) {
	fd, err := unix.Open(r.fifo(id), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("%w: %s waits for no start", ErrNotExist, id)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: r.fifo(id), Err: err}
	}
	return os.NewFile(uintptr(fd), "exec.fifo"), nil
}

// Started waits until the process has gone on; false if it ended before. The file's read deadline ends the waiting.
func Started(fifo *os.File) (bool, error) {
	raw, err := fifo.SyscallConn()
	if err != nil {
		return false, err
	}
	wrote := false
	err = raw.Read(func(fd uintptr) (done bool) {
		done, wrote = startedNow(fd)
		return done
	})
	return wrote, err
}

// HasStarted tells the same without waiting.
func HasStarted(fifo *os.File) (bool, error) {
	raw, err := fifo.SyscallConn()
	if err != nil {
		return false, err
	}
	wrote := false
	err = raw.Control(func(fd uintptr) { _, wrote = startedNow(fd) })
	return wrote, err
}

// startedNow tells whether the process has closed its end, and whether it wrote before.
func startedNow(fd uintptr) (done, wrote bool) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0, n > 0 && poll[0].Revents&unix.POLLIN != 0
}

// EndStart removes what OpenStart opened.
func (r *Runtime) EndStart(id string) error {
	if err := os.Remove(r.fifo(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// fifo is what a created process waits for. libcontainer takes a container for started once it is gone.
func (r *Runtime) fifo(id string) string { return filepath.Join(r.root, id, "exec.fifo") }

// StartedAt tells whether a container that another process made was started, and when.
func (r *Runtime) StartedAt(id string, pid int) (time.Time, bool) {
	if _, err := os.Lstat(r.fifo(id)); err == nil {
		if waits(pid) {
			return time.Time{}, false
		}
		_ = r.EndStart(id) // that process was killed before it could do this
	}
	info, err := os.Stat(filepath.Dir(r.fifo(id)))
	if err != nil {
		return time.Time{}, false
	}
	return info.ModTime(), true // removing the fifo was the last change
}

// waits tells whether a process is still libcontainer's init, and not the program that it executes.
func waits(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err != nil || string(data) == os.Args[0]+"\x00init\x00"
}

// Process is one that Exec started.
type Process struct {
	Pid     int
	process *libcontainer.Process
}

// Wait returns how the process ended and lets go of what libcontainer holds for it. It blocks a thread until then, so
// it is for a process that has ended.
func (p Process) Wait() (unix.WaitStatus, error) {
	state, err := p.process.Wait()
	if state == nil {
		return 0, err
	}
	return unix.WaitStatus(state.Sys().(syscall.WaitStatus)), nil
}

// Exec runs another process in a container. leaf names a cgroup below the container's for it, which [MakeLeaf] made;
// the zero Leaf stands for the container's own.
func (r *Runtime) Exec(id string, p *rspec.Process, leaf Leaf, stdio Stdio) (Process, error) {
	c, err := r.load(id)
	if err != nil {
		return Process{}, err
	}
	process, err := newProcess(p, stdio)
	if err != nil {
		return Process{}, err
	}
	process.SubCgroupPaths = leaf.sub
	if err := r.start(c, process); err != nil {
		return Process{}, err
	}
	pid, err := process.Pid()
	return Process{pid, process}, err
}

// Signal sends a signal to the container's first process. SIGKILL ends all processes of a container that has no PID
// namespace of its own.
func (r *Runtime) Signal(id string, s unix.Signal) error {
	c, err := r.load(id)
	if err != nil {
		return err
	}
	err = c.Signal(s)
	if errors.Is(err, libcontainer.ErrNotRunning) {
		return os.ErrProcessDone
	}
	return err
}

// Delete removes a container whose processes are gone, with its cgroups. It succeeds if there is none.
func (r *Runtime) Delete(id string) error {
	c, err := r.load(id)
	if errors.Is(err, ErrNotExist) {
		return os.RemoveAll(filepath.Join(r.root, id)) // a create that was killed half-way
	}
	if err != nil {
		return err
	}
	return c.Destroy()
}

// Purge kills and removes what is left of a container that may never have been whole: its processes are found by its
// cgroup. It succeeds if there is nothing.
func (r *Runtime) Purge(id, cgroupsPath string, systemd bool) error {
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: id, UseSystemdCgroup: systemd, Spec: &rspec.Spec{Linux: &rspec.Linux{CgroupsPath: cgroupsPath}},
	}, nil)
	if err != nil {
		return err
	}
	cm, err := manager.New(config)
	if err != nil {
		return err
	}
	if cm.Exists() {
		pids, err := cm.GetAllPids()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if err := cm.Destroy(); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(r.root, id))
}

// Alive tells whether the container's first process exists.
func (r *Runtime) Alive(id string) bool {
	c, err := r.load(id)
	if err != nil {
		return false
	}
	status, err := c.Status()
	return err == nil && status != libcontainer.Stopped
}

func (r *Runtime) load(id string) (*libcontainer.Container, error) {
	c, err := libcontainer.Load(r.root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotExist, id)
	}
	return c, err
}

// logHook sends libcontainer's messages to slog.
type logHook struct{ log *slog.Logger }

func (h logHook) Levels() []logrus.Level { return logrus.AllLevels[:logrus.WarnLevel+1] }

func (h logHook) Fire(e *logrus.Entry) error {
	h.log.Warn("libcontainer", "message", e.Message)
	return nil
}

// Update changes the limits that r sets, and leaves the others.
func (r *Runtime) Update(id string, want *rspec.LinuxResources) error {
	c, err := r.load(id)
	if err != nil {
		return err
	}
	changed, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: id, Spec: &rspec.Spec{Linux: &rspec.Linux{Resources: want}},
	}, nil)
	if err != nil {
		return err
	}
	config := c.Config()
	merge(config.Cgroups.Resources, changed.Resources)
	config.Cgroups.Resources.SkipDevices = true // they are as they were
	return c.Set(config)
}

func merge(have, set *cgroups.Resources) {
	overlay(&have.CpuShares, set.CpuShares)
	overlay(&have.CpuWeight, set.CpuWeight)
	overlay(&have.CpuQuota, set.CpuQuota)
	overlay(&have.CpuPeriod, set.CpuPeriod)
	overlay(&have.CpuBurst, set.CpuBurst)
	overlay(&have.CPUIdle, set.CPUIdle)
	overlay(&have.CpusetCpus, set.CpusetCpus)
	overlay(&have.CpusetMems, set.CpusetMems)
	overlay(&have.Memory, set.Memory)
	overlay(&have.MemorySwap, set.MemorySwap)
	overlay(&have.MemoryReservation, set.MemoryReservation)
	overlay(&have.PidsLimit, set.PidsLimit)
	if len(set.HugetlbLimit) > 0 {
		have.HugetlbLimit = set.HugetlbLimit
	}
	if len(set.Unified) > 0 {
		have.Unified = set.Unified
	}
}

func overlay[T comparable](have *T, set T) {
	var none T
	if set != none {
		*have = set
	}
}
