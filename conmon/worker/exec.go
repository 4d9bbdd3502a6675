package worker

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
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

// killTime bounds how long a killed exec is waited for: one that is frozen, or in the kernel's hands, ends later.
const killTime = 500 * time.Millisecond

// execs numbers the cgroup leaves of this worker.
var execs atomic.Uint64

// exec runs a process in a container and waits for it, for the time limit, or for the caller to go.
func (w *Worker) exec(ctx context.Context, m *wire.Message) (any, []*os.File, error) {
	x, err := w.newExecution(m)
	if err != nil {
		closeFiles(m.Files)
		return nil, nil, err
	}
	limited, cancel := withLimit(ctx, x.args.Timeout) // from here on: the start may take long, too
	defer cancel()
	go x.run(limited)
	select {
	case <-x.done:
	case <-limited.Done():
		x.awaitKill()
	}
	select {
	case <-x.done:
		if x.err == nil || limited.Err() == nil {
			return &conmon.ExecResult{Code: x.code}, nil, x.err
		}
	default:
	}
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	return &conmon.ExecResult{Code: -1, TimedOut: true}, nil, nil
}

func withLimit(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit > 0 {
		return context.WithTimeout(ctx, limit)
	}
	return context.WithCancel(ctx)
}

// execution is one exec under way.
type execution struct {
	*Worker
	record *record
	args   conmon.ExecArgs
	stdio  runtime.Stdio
	given  []*os.File // stdio, closed once the process has it
	leaf   runtime.Leaf

	started chan struct{} // closed when libcontainer has started the process, or has failed
	killed  chan struct{} // closed when the leaf is gone, if the time is over or the caller has gone
	done    chan struct{} // closed when code and err are set
	code    int
	err     error
}

func (w *Worker) newExecution(m *wire.Message) (*execution, error) {
	stdio, args, err := execArgs(m)
	if err != nil {
		return nil, err
	}
	if _, err := w.running(args.ID); err != nil {
		return nil, err
	}
	r, err := w.loadRecord(args.ID)
	if err != nil {
		return nil, err
	}
	leaf, err := runtime.MakeLeaf(r.Cgroups, fmt.Sprintf("%d-%d", os.Getpid(), execs.Add(1)))
	if err != nil {
		// Without a leaf a time limit ends the process and not those that it left behind.
		w.log.Warn("exec has no cgroup of its own", "container", args.ID, "err", err)
	}
	return &execution{
		Worker: w, record: r, args: args, stdio: stdio, given: m.Files, leaf: leaf,
		started: make(chan struct{}), killed: make(chan struct{}), done: make(chan struct{}),
	}, nil
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

// run starts the process and waits for its end; all that it started ends with ctx. It may go on after the caller has
// been answered: a process that is frozen while it is being started keeps libcontainer waiting.
func (x *execution) run(ctx context.Context) {
	defer close(x.done)
	stop := context.AfterFunc(ctx, func() {
		x.endLeaf()
		close(x.killed)
	})
	x.code, x.err = x.spawn(ctx)
	closeFiles(x.given)
	if !stop() { // however it ended
		x.err = ctx.Err()
		return
	}
	if err := x.leaf.Release(); err != nil {
		x.log.Warn("cgroup of an exec stays", "container", x.args.ID, "err", err)
	}
}

func (x *execution) spawn(ctx context.Context) (code int, err error) {
	defer func() { // which ends this exec alone, as in wire.Peer, whose goroutine is another
		if r := recover(); r != nil {
			err = fmt.Errorf("container %s: exec: panic: %v\n%s", x.args.ID, r, debug.Stack())
		}
	}()
	process, err := x.start(ctx)
	if err != nil {
		return -1, fmt.Errorf("container %s: exec %q: %w", x.args.ID, x.args.Args[0], err)
	}
	closeFiles(x.given)
	return wait(ctx, process)
}

func (x *execution) start(ctx context.Context) (runtime.Process, error) {
	defer close(x.started)
	if err := awaitThaw(ctx, x.record.Cgroups); err != nil {
		return runtime.Process{}, err
	}
	done, err := turn(ctx)
	if err != nil {
		return runtime.Process{}, err
	}
	defer done()
	process, err := x.runtime.Exec(x.args.ID, execSpec(x.record.Process, x.args.ExecRequest), x.leaf, x.stdio)
	if err != nil {
		x.sweep()
	}
	return process, err
}

// awaitThaw keeps execs out of a container that is frozen. On cgroup v2 a process begins in its cgroup, and would stop
// before it lets the worker go on: vfork(2) stops the thread that calls it, and Go's runtime waits for that one.
func awaitThaw(ctx context.Context, cgroups map[string]string) error {
	for pause := 10 * time.Millisecond; runtime.Frozen(cgroups); pause = min(2*pause, time.Second) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// wait ends the process when ctx is done. It leaves those that it started to the leaf.
func wait(ctx context.Context, process runtime.Process) (code int, err error) {
	pidfd, err := child.OpenFD(process.Pid)
	if err != nil {
		_ = unix.Kill(process.Pid, unix.SIGKILL) // not reaped yet, so it is still that process
		_, _ = process.Wait()
		return -1, err
	}
	defer pidfd.Close()
	stop := context.AfterFunc(ctx, func() { _ = signalTo(pidfd, unix.SIGKILL) })
	defer stop()
	if err := child.Ended(pidfd); err != nil {
		return -1, err
	}
	status, err := process.Wait()
	if err != nil {
		return -1, err
	}
	return conmon.DecodeWaitStatus(status).Code, nil
}

// awaitKill returns when nothing is left of what is being killed, or soon.
func (x *execution) awaitKill() {
	patience := time.After(killTime)
	for _, end := range []chan struct{}{x.done, x.killed} {
		select {
		case <-end:
		case <-patience:
			return
		}
	}
}

// startTime is how long a start goes on when it is not wanted any more: it takes a few milliseconds, and of one that is
// killed amid them libcontainer does not reap all processes.
const startTime = 100 * time.Millisecond

func (x *execution) endLeaf() {
	select {
	case <-x.started:
	case <-time.After(startTime):
	}
	endLeaf(x.leaf)
}

// endLeaf kills what is in a leaf until it is gone: a process that is being started may get into it late (one that comes
// too late finds no leaf, and fails), and one that is frozen ends when it thaws.
func endLeaf(leaf runtime.Leaf) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Minute) {
		_ = leaf.Kill()
		if leaf.Remove() {
			return
		}
		<-time.After(pause)
	}
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

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
