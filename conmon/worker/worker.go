// Package worker is the monitor's half that works: it runs libcontainer, copies logs, attaches, executes and signals.
// All that must outlive it is in the keeper (descriptors), in the run directory (records, libcontainer's state) or in
// the exit records; a new worker goes on from there. If the keeper dies, the worker becomes the keeper.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/keeper"
	"github.com/orlop/orlop/conmon/wire"
	"github.com/orlop/orlop/conmon/worker/logfile"
	"github.com/orlop/orlop/oci/runtime"
)

// Worker's mu guards the maps; it is never held while anything is waited for.
type Worker struct {
	cfg     keeper.Config
	log     *slog.Logger
	runtime *runtime.Runtime
	link    *wire.Peer // to the keeper
	journal *logfile.Journal

	listener, lock *os.File
	events         *os.File // held open for the next keeper; may be nil

	mu         sync.Mutex
	containers map[string]*container
	daemons    map[*wire.Peer]bool
	idle       *time.Timer
}

// idleTime is how long a worker with no container waits for a daemon before it ends the monitor.
const idleTime = 10 * time.Second

// spawns bounds how many containers and execs are being started at a time: each is a few milliseconds of one
// processor, so more would only make each other slow.
var spawns = make(chan struct{}, 16)

// turnTime is how long a container or an exec is counted among those that are being started. Whoever takes longer waits
// for something, and uses no processor: a container that is frozen must not keep others waiting.
const turnTime = 2 * time.Second

// turn waits until few enough are being started. done gives the turn back.
func turn(ctx context.Context) (done func(), err error) {
	select {
	case spawns <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	giveBack := sync.OnceFunc(func() { <-spawns })
	timer := time.AfterFunc(turnTime, giveBack)
	return func() { timer.Stop(); giveBack(); tidy().Reset(tidyTime) }, nil
}

// tidyTime after the last start, what starts have left to the garbage collector is collected, among it descriptors of
// libcontainer's. By itself the collector may take two minutes for it, and keeps the memory.
const tidyTime = 3 * time.Second

// tidy's timer is made by the first start: this package is in libcontainer's child too, which must do nothing by itself once
// its seccomp profile is in force.
var tidy = sync.OnceValue(func() *time.Timer { return time.AfterFunc(tidyTime, debug.FreeOSMemory) })

// Run works until the keeper says that it is over. It expects the descriptors that the keeper passes.
func Run(ctx context.Context, cfg keeper.Config, log *slog.Logger) error {
	w := &Worker{
		cfg: cfg, log: log, runtime: runtime.New(filepath.Join(cfg.RunDir, "containers"), log),
		containers: map[string]*container{}, daemons: map[*wire.Peer]bool{},
		listener: os.NewFile(keeper.FDListener, "listener"), lock: os.NewFile(keeper.FDLock, "lock"),
	}
	for _, fd := range []int{keeper.FDListener, keeper.FDLink, keeper.FDLock} {
		unix.CloseOnExec(fd)
	}
	// libcontainer's init inherits this: it does one thing at a time, and starts faster with fewer threads.
	os.Setenv("GOMAXPROCS", "1")
	listener, err := net.FileListener(w.listener)
	if err != nil {
		return fmt.Errorf("worker: listener: %w", err)
	}
	link := os.NewFile(keeper.FDLink, "link")
	conn, err := net.FileConn(link)
	link.Close()
	if err != nil {
		return fmt.Errorf("worker: link: %w", err)
	}
	w.link = wire.NewPeer(ctx, conn.(*net.UnixConn), w.fromKeeper, nil)
	orphaned := make(chan error, 1)
	go func() { orphaned <- w.link.Serve() }()
	if err := w.recover(ctx); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	w.idle = time.AfterFunc(idleTime, w.quitIfIdle)
	go w.accept(ctx, listener)
	<-orphaned
	log.Warn("keeper is gone: becoming the keeper")
	return w.become()
}

// accept serves daemons. Usually there is one; a second may come before the end of the first is seen.
func (w *Worker) accept(ctx context.Context, l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			w.log.Error("no more daemons can connect", "err", err)
			return
		}
		peer := wire.NewPeer(ctx, conn.(*net.UnixConn), w.fromDaemon, nil)
		w.mu.Lock()
		w.daemons[peer] = true
		w.idle.Stop()
		w.mu.Unlock()
		go func() {
			if err := peer.Serve(); err != nil {
				w.log.Debug("daemon is gone", "err", err)
			}
			w.mu.Lock()
			delete(w.daemons, peer)
			w.mu.Unlock()
			w.quitIfIdle()
		}()
	}
}

// quitIfIdle ends the monitor when there is nobody to work for. A daemon that connects at this moment finds the
// connection closed, and starts another.
func (w *Worker) quitIfIdle() {
	w.mu.Lock()
	busy := len(w.containers) > 0 || len(w.daemons) > 0
	w.mu.Unlock()
	if busy {
		return
	}
	if _, err := w.link.Call(context.Background(), keeper.MethodQuit, nil, nil); err == nil {
		os.Exit(0)
	}
}

// settleTime bounds how long a process that is about to become the keeper waits for what it is starting.
const settleTime = 2 * time.Second

// settle waits for containers and execs that are being started, and lets no other begin before resume: libcontainer marks
// every descriptor of the process close-on-exec while it starts one, also those that are to be handed over.
func settle() (resume func()) {
	patience := time.NewTimer(settleTime)
	defer patience.Stop()
	n := 0
	for n < cap(spawns) {
		select {
		case spawns <- struct{}{}:
			n++
			continue
		case <-patience.C:
		}
		break
	}
	return func() {
		for range n {
			<-spawns
		}
	}
}

// upgrade has another program take the place of this process and of the keeper. This one ends, as it may at any time; the
// keeper goes on as the other program, and starts a worker.
func (w *Worker) upgrade(ctx context.Context, path string) error {
	resume := settle()
	if _, err := w.link.Call(ctx, keeper.MethodUpgrade, path, nil); err != nil {
		resume()
		return err
	}
	w.log.Info("ending for an upgrade", "program", path)
	os.Exit(0)
	return nil
}

// become is the last act: this process goes on as the keeper.
func (w *Worker) become() error {
	settle()
	h := keeper.Handoff{Held: map[string]keeper.Held{}}
	var err error
	if h.Listener, err = keeper.FileNumber(w.listener); err != nil {
		return err
	}
	if h.Lock, err = keeper.FileNumber(w.lock); err != nil {
		return err
	}
	node := keeper.Held{Files: map[string]int{}}
	if node.Files[keeper.FileJournal], err = keeper.FileNumber(w.journal.File()); err != nil {
		return err
	}
	if w.events != nil {
		if node.Files[keeper.FileEvents], err = keeper.FileNumber(w.events); err != nil {
			return err
		}
	}
	h.Held[keeper.Node] = node
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, c := range w.containers {
		h.Held[id] = c.handOver()
	}
	return keeper.Become(keeper.Self, w.cfg, h)
}

func (w *Worker) fromKeeper(_ context.Context, m *wire.Message) (any, []*os.File, error) {
	if m.Method != keeper.MethodEnded {
		return nil, nil, fmt.Errorf("worker: unknown method %q", m.Method)
	}
	var e keeper.Ended
	if err := m.Decode(&e); err != nil {
		return nil, nil, err
	}
	exit, err := conmon.ReadExit(w.cfg.ExitDir, e.ID)
	if err != nil || exit == nil {
		return nil, nil, err
	}
	if c := w.find(e.ID); c != nil {
		w.end(c, *exit)
	}
	return nil, nil, nil
}

// fromDaemon is the table of contents of the worker.
func (w *Worker) fromDaemon(ctx context.Context, m *wire.Message) (answer any, files []*os.File, err error) {
	defer func() {
		if code := conmon.CodeOf(err); code != "" {
			err = codedError{err, code}
		}
	}()
	switch m.Method {
	case conmon.MethodCreate:
		return call(m, func(r conmon.CreateRequest) (any, error) { return w.create(ctx, r) })
	case conmon.MethodStart:
		return call(m, func(id string) (any, error) { return w.start(id) })
	case conmon.MethodExec:
		return w.exec(ctx, m)
	case conmon.MethodSignal:
		return call(m, func(a conmon.SignalArgs) (any, error) { return nil, w.signal(a.ID, a.Signal) })
	case conmon.MethodUpdate:
		return call(m, func(a conmon.UpdateArgs) (any, error) { return nil, w.update(a) })
	case conmon.MethodAttach:
		return w.attach(m)
	case conmon.MethodCloseStdin:
		return call(m, func(id string) (any, error) { return nil, w.closeStdin(id) })
	case conmon.MethodResize:
		return call(m, func(a conmon.ResizeArgs) (any, error) { return nil, w.resize(a) })
	case conmon.MethodReopenLog:
		return call(m, func(id string) (any, error) { return nil, w.reopenLog(id) })
	case conmon.MethodDelete:
		return call(m, func(id string) (any, error) { return nil, w.delete(ctx, id) })
	case conmon.MethodList:
		return w.list(), nil, nil
	case conmon.MethodProgram:
		program, err := conmon.ProgramAt(keeper.Self)
		return program, nil, err
	case conmon.MethodUpgrade:
		return call(m, func(path string) (any, error) { return nil, w.upgrade(ctx, path) })
	}
	return nil, nil, fmt.Errorf("worker: unknown method %q", m.Method)
}

func call[T any](m *wire.Message, f func(T) (any, error)) (any, []*os.File, error) {
	var body T
	if err := m.Decode(&body); err != nil {
		return nil, nil, err
	}
	answer, err := f(body)
	return answer, nil, err
}

type codedError struct {
	error
	code string
}

func (e codedError) WireCode() string { return e.code }
func (e codedError) Unwrap() error    { return e.error }

func (w *Worker) find(id string) *container {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.containers[id]
}

func (w *Worker) get(id string) (*container, error) {
	if c := w.find(id); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("%w: %s", conmon.ErrNotFound, id)
}

func (w *Worker) running(id string) (*container, error) {
	c, err := w.get(id)
	if err == nil && (!c.made.Load() || c.exit.Load() != nil) {
		return nil, fmt.Errorf("%w: %s", conmon.ErrNotRunning, id)
	}
	return c, err
}

func (w *Worker) list() []conmon.Container {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]conmon.Container, 0, len(w.containers))
	for _, c := range w.containers {
		if c.made.Load() || c.exit.Load() != nil {
			out = append(out, c.public())
		}
	}
	return out
}

// tell sends a notice to every daemon.
func (w *Worker) tell(method string, body any) {
	w.mu.Lock()
	peers := make([]*wire.Peer, 0, len(w.daemons))
	for p := range w.daemons {
		peers = append(peers, p)
	}
	w.mu.Unlock()
	for _, p := range peers {
		if err := p.Notify(method, body); err != nil && !errors.Is(err, wire.ErrClosed) {
			w.log.Error("daemon was not told", "method", method, "err", err)
		}
	}
}
