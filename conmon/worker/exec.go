package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/child"
	"github.com/orlop/orlop/conmon/wire"
	"github.com/orlop/orlop/oci/runtime"
)

// killTime bounds how long a killed exec is waited for: a process in the kernel's hands may not die at once.
const killTime = 5 * time.Second

// execs numbers the cgroup leaves of this worker.
var execs atomic.Uint64

// exec runs a process in a container and waits for it, for the time limit, or for the caller to go.
func (w *Worker) exec(ctx context.Context, m *wire.Message) (any, []*os.File, error) {
	stdio, args, err := execArgs(m)
	defer closeFiles(m.Files)
	if err != nil {
		return nil, nil, err
	}
	if _, err := w.running(args.ID); err != nil {
		return nil, nil, err
	}
	r, err := w.loadRecord(args.ID)
	if err != nil {
		return nil, nil, err
	}
	leaf, err := runtime.MakeLeaf(r.Cgroups, fmt.Sprintf("exec-%d-%d", os.Getpid(), execs.Add(1)))
	if err != nil {
		// Without a leaf a time limit ends the process and not those that it left behind.
		w.log.Warn("exec has no cgroup of its own", "container", args.ID, "err", err)
	}
	defer leaf.Remove()
	process, err := w.spawn(ctx, r, args, leaf, stdio)
	closeFiles(m.Files)
	if err != nil {
		return nil, nil, fmt.Errorf("container %s: exec %q: %w", args.ID, args.Args[0], err)
	}
	defer process.pidfd.Close()
	return process.wait(ctx, args.Timeout)
}

func execArgs(m *wire.Message) (runtime.Stdio, conmon.ExecArgs, error) {
	var args conmon.ExecArgs
	if err := m.Decode(&args); err != nil {
		return runtime.Stdio{}, args, err
	}
	if len(args.Args) == 0 {
		return runtime.Stdio{}, args, fmt.Errorf("exec in %s: no command", args.ID)
	}
	var stdio runtime.Stdio
	files := m.Files
	for _, slot := range []struct {
		came bool
		file **os.File
	}{{args.Stdin, &stdio.Stdin}, {args.Stdout, &stdio.Stdout}, {args.Stderr, &stdio.Stderr}, {args.Console, &stdio.Console}} {
		if !slot.came {
			continue
		}
		if len(files) == 0 {
			return stdio, args, fmt.Errorf("exec in %s: a descriptor is missing", args.ID)
		}
		*slot.file, files = files[0], files[1:]
	}
	return stdio, args, nil
}

// execProcess is a process that was started by an exec.
type execProcess struct {
	runtime.Process
	pidfd *os.File
	leaf  runtime.Leaf
}

func (w *Worker) spawn(ctx context.Context, r *record, args conmon.ExecArgs, leaf runtime.Leaf, stdio runtime.Stdio) (*execProcess, error) {
	select {
	case spawns <- struct{}{}:
		defer func() { <-spawns }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	process, err := w.runtime.Exec(r.ID, execSpec(r.Process, args.ExecRequest), leaf, stdio)
	if err != nil {
		return nil, err
	}
	pidfd, err := child.OpenFD(process.Pid)
	if err != nil {
		_ = leaf.Kill()
		return nil, err
	}
	return &execProcess{process, pidfd, leaf}, nil
}

// execSpec is the container's own process with another command.
func execSpec(p *rspec.Process, r conmon.ExecRequest) *rspec.Process {
	out := *p
	out.Args, out.Terminal, out.ConsoleSize = r.Args, r.Terminal, nil
	isTerm := func(e string) bool { return strings.HasPrefix(e, "TERM=") }
	if r.Terminal && !slices.ContainsFunc(p.Env, isTerm) {
		out.Env = append(slices.Clone(p.Env), "TERM=xterm")
	}
	return &out
}

func (p *execProcess) wait(ctx context.Context, limit time.Duration) (any, []*os.File, error) {
	ended := make(chan error, 1)
	go func() { ended <- child.Ended(p.pidfd) }()
	var expired <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case err := <-ended:
		code, err := p.reap(err)
		return &conmon.ExecResult{Code: code}, nil, err
	case <-expired:
		return &conmon.ExecResult{Code: -1, TimedOut: true}, nil, p.kill(ended)
	case <-ctx.Done():
		return nil, nil, errors.Join(ctx.Err(), p.kill(ended))
	}
}

// kill ends the process and everything that it started.
func (p *execProcess) kill(ended <-chan error) error {
	err := p.leaf.Kill()
	_ = unix.Kill(p.Pid, unix.SIGKILL) // not reaped yet, so it is still that process
	select {
	case werr := <-ended:
		_, rerr := p.reap(werr)
		return errors.Join(err, rerr)
	case <-time.After(killTime):
		go func() { p.reap(<-ended) }()
		return errors.Join(err, fmt.Errorf("process %d was killed and has not ended after %s", p.Pid, killTime))
	}
}

func (p *execProcess) reap(err error) (code int, _ error) {
	if err != nil {
		return -1, err
	}
	status, err := p.Wait()
	if err != nil {
		return -1, err
	}
	return conmon.DecodeWaitStatus(status).Code, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
