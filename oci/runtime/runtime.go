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
	"sync"
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
)

// ErrNotExist means that the container is not there, or not whole.
var ErrNotExist = errors.New("container does not exist")

// Runtime is safe for concurrent use, also for one container.
type Runtime struct {
	root string

	mu      sync.Mutex // guards created
	created map[string]*libcontainer.Container
}

// Init is what libcontainer's child does; it does not return if this process is one.
func Init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
}

// New keeps containers' states below root, which a reboot must empty.
func New(root string, log *slog.Logger) *Runtime {
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.WarnLevel)
	logrus.AddHook(logHook{log})
	return &Runtime{root: root, created: map[string]*libcontainer.Container{}}
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
	if err := c.Start(process); err != nil {
		return Created{}, errors.Join(err, c.Destroy())
	}
	state, err := c.State()
	if err != nil {
		return Created{}, errors.Join(err, c.Signal(unix.SIGKILL))
	}
	r.mu.Lock()
	r.created[id] = c
	r.mu.Unlock()
	return Created{Pid: state.InitProcessPid, Cgroups: state.CgroupPaths}, nil
}

// Start lets the created process run, and returns when it has executed its program.
func (r *Runtime) Start(id string) error {
	r.mu.Lock()
	c := r.created[id]
	delete(r.created, id)
	r.mu.Unlock()
	if c == nil {
		var err error
		if c, err = r.load(id); err != nil {
			return err
		}
	}
	err := c.Exec()
	if err != nil {
		// libcontainer leaves a thread behind that waits for the dead process to open the fifo.
		if fd, oerr := unix.Open(r.fifo(id), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); oerr == nil {
			unix.Close(fd)
		}
	}
	return err
}

// fifo is what a created process waits for. It is removed when the process has gone on.
func (r *Runtime) fifo(id string) string { return filepath.Join(r.root, id, "exec.fifo") }

// StartedAt tells whether a container that another process made was started, and when.
func (r *Runtime) StartedAt(id string, pid int) (time.Time, bool) {
	if _, err := os.Lstat(r.fifo(id)); err == nil {
		if waits(pid) {
			return time.Time{}, false
		}
		_ = os.Remove(r.fifo(id)) // that process was killed before it could do this
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

// Exec runs another process in a container. leaf names a cgroup below the container's for it, which [MakeLeaf] made;
// nil for the container's own.
func (r *Runtime) Exec(id string, p *rspec.Process, leaf Leaf, stdio Stdio) (pid int, err error) {
	c, err := r.load(id)
	if err != nil {
		return 0, err
	}
	process, err := newProcess(p, stdio)
	if err != nil {
		return 0, err
	}
	process.SubCgroupPaths = leaf.sub
	if err := c.Start(process); err != nil {
		return 0, err
	}
	return process.Pid()
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
	r.mu.Lock()
	delete(r.created, id)
	r.mu.Unlock()
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
	r.mu.Lock()
	delete(r.created, id)
	r.mu.Unlock()
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
