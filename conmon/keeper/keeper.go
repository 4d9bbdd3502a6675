// Package keeper is the monitor's half that must not fail. It is the last parent of every container, and holds every
// descriptor that a container or its log needs. When the worker dies it starts another, which finds everything here;
// when the keeper itself dies, the worker becomes the keeper (see [Handoff]).
//
//	keeper ─── worker ─── containers      a container's processes fall to the nearest subreaper (prctl(2)):
//	keeper ─── containers                 to the keeper when the worker dies;
//	       └── worker ─── containers      new ones are the new worker's.
//
// It does almost nothing, so that it has almost no bugs.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/child"
	"github.com/orlop/orlop/conmon/wire"
)

// Config is the same for the keeper and the worker.
type Config struct {
	RunDir  string // sockets, and container state
	ExitDir string // exit records
}

// Node is the ID under which descriptors are held that belong to no container.
const Node = ""

// Names of those descriptors.
const (
	FileJournal = "journal" // the worker's
	FileEvents  = "events"  // see follow; the worker only keeps it open
)

// keeper guards its fields by mu; it is never held while anything is waited for.
type keeper struct {
	cfg      Config
	log      *slog.Logger
	listener *os.File // of the socket that the daemon connects to; each worker gets it
	lock     *os.File // says that there is a monitor; each worker gets it too

	mu       sync.Mutex
	held     map[string]*holding
	strays   map[int]stray // ended children that no holding names yet
	worker   int           // its pid, 0 if none runs
	link     *wire.Peer    // to the worker
	quitting bool
	program  string        // to go on as, once the worker has ended; "" for none
	insists  int           // exits that could not be recorded yet
	reaped   chan struct{} // closed when the worker has been reaped

	// Held before mu, for the whole of what they name: who was second finds it done when it has the lock.
	reaping, recording sync.Mutex
}

// holding is what is held for one container.
type holding struct {
	pid   int
	oom   conmon.OOM
	files map[string]*os.File
	ended bool
}

type stray struct {
	exit conmon.Exit
	at   time.Time
}

// strayAge is how long the end of an unknown child is kept: the worker may have been killed before it told of it.
const strayAge = time.Minute

// Run keeps until there is nothing left to keep and no daemon. handoff is nil, or what a worker left to itself.
func Run(ctx context.Context, cfg Config, handoff *Handoff, log *slog.Logger) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl(PR_SET_CHILD_SUBREAPER)", err)
	}
	k := &keeper{cfg: cfg, log: log, held: map[string]*holding{}, strays: map[int]stray{}}
	if err := k.start(handoff); err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for range children {
			k.reap()
		}
	}()
	k.reap() // those who ended before anybody listened
	var hurry hurry
	for ctx.Err() == nil {
		began := time.Now()
		if err := k.runWorker(ctx); err != nil {
			log.Error("worker", "err", err)
		}
		k.mu.Lock()
		done := k.quitting
		k.mu.Unlock()
		if done {
			return os.Remove(SocketPath(cfg))
		}
		if err := k.becomeNext(); err != nil {
			log.Error("monitor stays the program that it is", "err", err)
		}
		select {
		case <-time.After(hurry.pause(time.Since(began))):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// hurry decides how soon a worker is replaced: at once, because without one there is nobody to become the keeper. Only
// one that can't live at all must not eat the machine.
type hurry struct{ early int } // workers in a row that died young

const (
	youth     = time.Second
	earlyMost = 10 // so many are replaced at once
)

func (h *hurry) pause(lived time.Duration) time.Duration {
	if lived > youth {
		h.early = 0
	}
	h.early++
	if h.early <= earlyMost {
		return 0
	}
	return min(10*time.Millisecond<<min(h.early-earlyMost, 10), time.Second)
}

func (k *keeper) start(handoff *Handoff) error {
	if handoff != nil {
		return k.takeOver(handoff)
	}
	var err error
	if k.lock, err = lock(filepath.Join(k.cfg.RunDir, "monitor.lock")); err != nil {
		return err
	}
	k.listener, err = listen(SocketPath(k.cfg))
	return err
}

// runWorker starts a worker and serves it until it has ended.
func (k *keeper) runWorker(ctx context.Context) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	k.follow()
	link := wire.NewPeer(ctx, ours, k.handle, func(string) bool { return true })
	defer link.Close()
	reaped := make(chan struct{})
	k.mu.Lock()
	k.link, k.reaped = link, reaped
	k.worker, err = k.spawnWorker(theirs)
	k.mu.Unlock()
	theirs.Close()
	if err != nil {
		return err
	}
	serveErr := link.Serve() // what the worker sent before it died is all read here
	<-reaped
	return serveErr
}

// handle answers the worker. Messages are handled one at a time, in their order.
func (k *keeper) handle(_ context.Context, m *wire.Message) (any, []*os.File, error) {
	switch m.Method {
	case MethodHold:
		return nil, nil, k.hold(m)
	case MethodDrop:
		return nil, nil, k.drop(m)
	case MethodIDs:
		return k.ids(), nil, nil
	case MethodTake:
		return k.take(m)
	case MethodKnows:
		var id string
		err := m.Decode(&id)
		return k.knows(id), nil, err
	case MethodQuit:
		return nil, nil, k.quit()
	case MethodUpgrade:
		var program string
		if err := m.Decode(&program); err != nil {
			return nil, nil, err
		}
		return nil, nil, k.upgrade(program)
	}
	return nil, nil, fmt.Errorf("keeper: unknown method %q", m.Method)
}

func (k *keeper) hold(m *wire.Message) error {
	var h Hold
	if err := m.Decode(&h); err != nil {
		return err
	}
	if len(h.Names) != len(m.Files) {
		return fmt.Errorf("hold %s: %d names for %d descriptors", h.ID, len(h.Names), len(m.Files))
	}
	k.mu.Lock()
	c := k.holdingLocked(h.ID)
	for i, name := range h.Names {
		if old := c.files[name]; old != nil {
			old.Close()
		}
		c.files[name] = m.Files[i]
	}
	var early *conmon.Exit
	if h.Pid != 0 {
		c.pid, c.oom = h.Pid, h.OOM
		if s, ok := k.strays[h.Pid]; ok {
			early = &s.exit
			delete(k.strays, h.Pid)
		}
	}
	pidfd := c.files["pidfd"]
	k.mu.Unlock()
	switch {
	case early != nil:
		k.ended(h.ID, *early)
	case h.Found && pidfd != nil && !isOurs(h.Pid):
		return k.watchStranger(h.ID, h.Pid, pidfd)
	}
	return nil
}

func (k *keeper) holdingLocked(id string) *holding {
	c := k.held[id]
	if c == nil {
		c = &holding{files: map[string]*os.File{}}
		k.held[id] = c
	}
	return c
}

func (k *keeper) drop(m *wire.Message) error {
	var d Drop
	if err := m.Decode(&d); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.held[d.ID]
	if c == nil {
		return nil
	}
	for name, f := range c.files {
		if d.Name == "" || d.Name == name {
			f.Close()
			delete(c.files, name)
		}
	}
	if d.Name == "" {
		delete(k.held, d.ID)
	}
	return nil
}

func (k *keeper) ids() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	ids := make([]string, 0, len(k.held))
	for id := range k.held {
		ids = append(ids, id)
	}
	return ids
}

// take gives the worker copies of what is held for one container.
func (k *keeper) take(m *wire.Message) (any, []*os.File, error) {
	var id string
	if err := m.Decode(&id); err != nil {
		return nil, nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.held[id]
	if c == nil {
		return nil, nil, fmt.Errorf("nothing is held for %q", id)
	}
	h := Hold{ID: id, Pid: c.pid, OOM: c.oom}
	var files []*os.File
	for name, f := range c.files {
		dup, err := duplicate(f) // sending closes it
		if err != nil {
			return nil, files, err
		}
		h.Names = append(h.Names, name)
		files = append(files, dup)
	}
	return h, files, nil
}

var errBusy = errors.New("containers are held")

func (k *keeper) quit() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id := range k.held {
		if id != Node {
			return errBusy
		}
	}
	k.quitting = true
	return nil
}

// reap writes down how children ended, and only then lets them go.
func (k *keeper) reap() {
	k.reaping.Lock()
	defer k.reaping.Unlock()
	for {
		pid, exit, err := child.Peek()
		if err != nil || pid == 0 {
			return // no children, or none that ended
		}
		k.mu.Lock()
		if pid == k.worker {
			k.log.Warn("worker ended", "pid", pid, "code", exit.Code)
			k.worker = 0
			close(k.reaped)
			k.mu.Unlock()
			child.Reap(pid)
			continue
		}
		id := k.ownerLocked(pid)
		if id == "" {
			k.strayLocked(pid, exit)
		}
		k.mu.Unlock()
		if id != "" {
			k.ended(id, exit)
		}
		child.Reap(pid)
	}
}

func (k *keeper) ownerLocked(pid int) string {
	for id, c := range k.held {
		if c.pid == pid && !c.ended {
			return id
		}
	}
	return ""
}

func (k *keeper) strayLocked(pid int, exit conmon.Exit) {
	for old, s := range k.strays {
		if time.Since(s.at) > strayAge {
			delete(k.strays, old)
		}
	}
	k.strays[pid] = stray{exit, time.Now()}
}

// ended records how a container ended and tells the worker, which tells the daemon. If that fails, what is known stays
// here and is tried again: the process may be gone, and its pid another's, so nobody else can tell.
func (k *keeper) ended(id string, exit conmon.Exit) {
	k.recording.Lock()
	defer k.recording.Unlock()
	k.mu.Lock()
	c := k.held[id]
	if c == nil || c.ended {
		k.mu.Unlock()
		return
	}
	c.ended = true
	oom := c.oom
	k.mu.Unlock()
	exit, err := conmon.RecordExit(k.cfg.ExitDir, id, exit, oom)
	if err == nil {
		k.tell(id)
		return
	}
	k.log.Error("exit is not recorded yet", "container", id, "code", exit.Code, "err", err)
	k.insist(1)
	go func() {
		defer k.insist(-1)
		if _, ok := conmon.InsistExit(k.cfg.ExitDir, id, exit, oom, func() bool { return k.knows(id) }); ok {
			k.log.Info("exit is recorded", "container", id, "code", exit.Code)
			k.tell(id)
		}
	}()
}

// knows tells whether the end of a container is known here, and will be told if it has not been yet.
func (k *keeper) knows(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.held[id]
	return c != nil && c.ended
}

// tell is for whoever is the worker now: it may have looked for the record before it was written. One that comes later
// finds it.
func (k *keeper) tell(id string) {
	k.mu.Lock()
	link := k.link
	k.mu.Unlock()
	if link != nil {
		_ = link.Notify(MethodEnded, Ended{ID: id})
	}
}

func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return l.File()
}

func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	dup := -1
	var derr error
	if err := raw.Control(func(fd uintptr) { dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, os.NewSyscallError("dup", derr)
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}

// lock fails if there is a monitor: the descriptor of a dead keeper lives on in its worker, and so does the lock.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("keeper: %s is locked: another monitor runs", path)
	}
	return f, nil
}

// What a worker inherits.
const (
	FDListener = 3
	FDLink     = 4
	FDLock     = 5
)

// spawnWorker starts this same program as the worker.
func (k *keeper) spawnWorker(link *os.File) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	args := []string{"orlop-conmon", "worker", "--run-dir", k.cfg.RunDir, "--exit-dir", k.cfg.ExitDir}
	p, err := os.StartProcess("/proc/self/exe", args, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{null, os.Stdout, os.Stderr, k.listener, link, k.lock},
	})
	if err != nil {
		return 0, err
	}
	pid := p.Pid
	return pid, p.Release() // reap waits for it
}
