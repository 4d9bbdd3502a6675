package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/child"
	"github.com/orlop/orlop/conmon/worker/logfile"
	"github.com/orlop/orlop/oci/runtime"
)

// create makes a container that waits to be started. A repeat waits for the first and gets its answer.
func (w *Worker) create(ctx context.Context, r conmon.CreateRequest) (*conmon.Created, error) {
	began := time.Now()
	if err := checkCreate(r); err != nil {
		return nil, err
	}
	c := newContainer(r.ID)
	c.op.Lock()
	defer c.op.Unlock()
	if earlier := w.add(c); earlier != nil {
		earlier.op.Lock() // until it is made, or has failed
		defer earlier.op.Unlock()
		if w.find(r.ID) != earlier {
			return nil, fmt.Errorf("container %s: another create of it failed", r.ID)
		}
		return &conmon.Created{Pid: int(earlier.pid.Load())}, nil
	}
	done, err := turn(ctx)
	if err != nil {
		w.remove(c)
		return nil, err
	}
	defer done()
	m := &making{Worker: w, container: c, request: r}
	pid, err := m.make()
	m.closeGiven()
	if err != nil {
		m.master.Close() // if there is one
		return nil, errors.Join(fmt.Errorf("container %s: %w", r.ID, err), m.undo())
	}
	all := time.Since(began)
	return &conmon.Created{Pid: pid, Steps: map[string]time.Duration{
		"libcontainer": m.libcontainer, "worker": all - m.libcontainer,
	}}, nil
}

func checkCreate(r conmon.CreateRequest) error {
	switch {
	case r.ID == "" || r.ID != filepath.Base(r.ID):
		return fmt.Errorf("container ID %q is not a file name", r.ID)
	case r.Spec == nil || r.Spec.Process == nil || r.Spec.Root == nil || r.Spec.Linux == nil:
		return fmt.Errorf("container %s: spec lacks process, root or linux", r.ID)
	}
	return nil
}

// add returns the container that has this ID already, or nil.
func (w *Worker) add(c *container) *container {
	w.mu.Lock()
	defer w.mu.Unlock()
	if earlier := w.containers[c.id]; earlier != nil {
		return earlier
	}
	w.containers[c.id] = c
	w.idle.Stop()
	return nil
}

func (w *Worker) remove(c *container) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.containers[c.id] == c {
		delete(w.containers, c.id)
	}
}

// making is one create under way.
type making struct {
	*Worker
	*container
	request conmon.CreateRequest

	record       *record
	given        []*os.File // what the container gets: closed here once it has it
	stdio        runtime.Stdio
	master       *os.File // our end of the socket that a terminal's master comes through
	libcontainer time.Duration
}

// make takes its steps in an order that lets a new worker clean up after each: the record first, then what the keeper
// holds, then the container, then its pid.
func (m *making) make() (pid int, err error) {
	for _, step := range []func() error{m.openStdio, m.openLog, m.note, m.holdFiles, m.joinPIDs, m.run} {
		if err := step(); err != nil {
			return 0, err
		}
	}
	if err := m.copyOutput(m.container); err != nil {
		return 0, err
	}
	m.made.Store(true)
	go m.watch(m.container)
	return m.record.Pid, nil
}

func (m *making) openStdio() error {
	if m.request.Spec.Process.Terminal {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socketpair", err)
		}
		m.master = os.NewFile(uintptr(fds[0]), "console-socket")
		m.stdio.Console = m.give(os.NewFile(uintptr(fds[1]), "console-socket"))
		return nil
	}
	if m.request.Stdin {
		keep, give, err := pipe(false)
		if err != nil {
			return err
		}
		m.put(fileStdin, keep)
		m.stdio.Stdin = m.give(give)
	}
	var err error
	if m.stdio.Stdout, err = m.output(fileStdout, fileOutSpool); err != nil {
		return err
	}
	m.stdio.Stderr, err = m.output(fileStderr, fileErrSpool)
	return err
}

func (m *making) output(name, spoolName string) (*os.File, error) {
	keep, give, err := pipe(true)
	if err != nil {
		return nil, err
	}
	m.put(name, keep)
	m.give(give)
	spool, err := logfile.NewSpool()
	if err != nil {
		return nil, err
	}
	m.put(spoolName, spool)
	return give, nil
}

func (m *making) give(f *os.File) *os.File {
	m.given = append(m.given, f)
	return f
}

func (m *making) closeGiven() {
	for _, f := range m.given {
		f.Close()
	}
	m.given = nil
}

func (m *making) openLog() error {
	if m.request.LogPath == "" {
		return nil
	}
	f, err := logfile.Open(m.request.LogPath)
	if err != nil {
		return err
	}
	m.put(fileLog, f)
	m.slot, err = m.journal.Take()
	return err
}

func (m *making) note() error {
	r := m.request
	m.stdinOnce = r.StdinOnce
	m.sharesPIDs = !hasOwnPIDs(r.Spec)
	m.record = &record{
		ID: r.ID, LogPath: r.LogPath, LogSlot: m.slot, StdinOnce: r.StdinOnce, Systemd: r.SystemdCgroup,
		CgroupsPath: r.Spec.Linux.CgroupsPath, SharesPIDs: m.sharesPIDs, Process: r.Spec.Process,
	}
	if err := m.saveRecord(m.record); err != nil {
		return err
	}
	return conmon.ReserveExit(m.cfg.ExitDir, m.id)
}

// hasOwnPIDs tells whether all processes of the container end with its first one.
func hasOwnPIDs(spec *rspec.Spec) bool {
	for _, n := range spec.Linux.Namespaces {
		if n.Type == rspec.PIDNamespace {
			return n.Path == ""
		}
	}
	return false
}

func (m *making) holdFiles() error { return m.hold(m.container, m.names()...) }

// joinPIDs opens the namespace and only then asks whether the process is still the other container's.
func (m *making) joinPIDs() error {
	if m.request.JoinPIDs == "" {
		return nil
	}
	other, err := m.running(m.request.JoinPIDs)
	if err != nil {
		return err
	}
	pids, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", other.pid.Load()))
	if err != nil {
		return fmt.Errorf("container %s: %w", other.id, err)
	}
	m.give(pids)
	if err := m.send(other, 0); err != nil {
		return err
	}
	for i, n := range m.request.Spec.Linux.Namespaces {
		if n.Type == rspec.PIDNamespace {
			m.request.Spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), pids.Fd())
		}
	}
	return nil
}

// run has libcontainer make the container, and tells the record and the keeper of its process.
func (m *making) run() error {
	began := time.Now()
	made, err := m.runtime.Create(m.id, m.request.Spec, m.request.SystemdCgroup, m.stdio)
	m.libcontainer = time.Since(began)
	if err != nil {
		m.sweep()
		return err
	}
	m.record.Pid, m.record.Cgroups, m.record.OOM = made.Pid, made.Cgroups, watchOOM(made.Cgroups)
	if err := m.saveRecord(m.record); err != nil {
		return err
	}
	if m.master != nil {
		m.closeGiven() // so that the terminal comes, or the end of the socket
		console, err := runtime.ReceiveConsole(m.master)
		m.master.Close()
		if err != nil {
			return err
		}
		m.put(fileConsole, console)
	}
	pidfd, err := child.OpenFD(made.Pid)
	if err != nil {
		return err
	}
	m.put(filePidfd, pidfd)
	m.oom = m.record.OOM
	m.pid.Store(int32(made.Pid))
	if m.master != nil {
		return m.hold(m.container, filePidfd, fileConsole)
	}
	return m.hold(m.container, filePidfd)
}

// undo leaves nothing of a container that could not be made.
func (m *making) undo() error {
	m.release()
	m.drop(m.id, "")
	m.journal.Free(m.slot)
	err := m.purge(m.id, m.request.Spec.Linux.CgroupsPath, m.request.SystemdCgroup)
	if err == nil {
		err = m.unrecord(m.id)
	}
	if pid := int(m.pid.Load()); pid != 0 {
		child.Reap(pid)
	}
	m.Worker.remove(m.container)
	return err
}

// purge kills and removes what a create that failed or was killed left.
func (w *Worker) purge(id, cgroupsPath string, systemd bool) error {
	if err := w.runtime.Purge(id, cgroupsPath, systemd); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return nil
}
