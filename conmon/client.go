package conmon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop/orlop/conmon/wire"
)

// Client is safe for concurrent use. Each call fails with ErrUnavailable if the worker dies under it; calls after that
// wait for the connection to the next one.
type Client struct {
	cfg    Config
	events func(Event)
	resync func()
	stop   context.CancelFunc
	done   chan struct{} // closed when the connection is not looked after any more

	mu    sync.Mutex // guards what follows
	peer  *wire.Peer
	ready chan struct{} // closed while there is a peer
}

// Connect starts the monitor unless it runs, and connects. Events that happen from then on are sent to events, which
// must not block; after each reconnection the client calls resync, for the caller to compare with List.
func Connect(ctx context.Context, cfg Config, events func(Event), resync func()) (*Client, error) {
	for _, dir := range []string{cfg.RunDir, cfg.ExitDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("monitor: %w", err)
		}
	}
	life, stop := context.WithCancel(context.Background())
	c := &Client{cfg: cfg, events: events, resync: resync, stop: stop, done: make(chan struct{}), ready: make(chan struct{})}
	served, err := c.connect(ctx, life)
	if err != nil {
		stop()
		return nil, err
	}
	go c.reconnect(life, served)
	return c, nil
}

// Close disconnects. The monitor goes on, unless there is no container.
func (c *Client) Close() error {
	c.stop()
	if peer := c.connected(); peer != nil {
		peer.Close()
	}
	<-c.done
	return nil
}

const (
	startTime = 10 * time.Second      // for a monitor to start
	pauseTime = 10 * time.Millisecond // between attempts to connect to one that is starting
)

// connect returns a channel that is closed when the connection has ended.
func (c *Client) connect(ctx, life context.Context) (<-chan struct{}, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	monitor := newStarter(c.cfg)
	for {
		conn, err := net.Dial("unix", filepath.Join(c.cfg.RunDir, "worker.sock"))
		if err == nil {
			return c.serve(life, conn.(*net.UnixConn))
		}
		if err := monitor.start(); err != nil {
			return nil, err
		}
		select {
		case <-time.After(pauseTime):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w; its log is %s", ErrUnavailable, err, monitor.logPath)
		}
	}
}

func (c *Client) serve(life context.Context, conn *net.UnixConn) (<-chan struct{}, error) {
	peer := wire.NewPeer(life, conn, c.handle, func(string) bool { return true })
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = peer.Serve()
	}()
	// A connection may wait for a worker that is still to come: it is there when it answers.
	if _, err := peer.Call(life, MethodList, nil, nil); err != nil {
		peer.Close()
		<-served
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	c.mu.Lock()
	c.peer = peer
	close(c.ready)
	c.mu.Unlock()
	return served, nil
}

func (c *Client) reconnect(life context.Context, served <-chan struct{}) {
	defer close(c.done)
	for {
		if served != nil {
			<-served
			c.lost(c.connected())
		}
		if life.Err() != nil {
			return
		}
		var err error
		if served, err = c.connect(life, life); err == nil {
			c.resync()
			continue
		}
		served = nil
		select {
		case <-time.After(pauseTime):
		case <-life.Done():
		}
	}
}

func (c *Client) connected() *wire.Peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer
}

// lost has calls wait for the next connection. Whoever sees the end of this one first says so.
func (c *Client) lost(peer *wire.Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if peer != nil && c.peer == peer {
		c.peer, c.ready = nil, make(chan struct{})
	}
}

func (c *Client) handle(_ context.Context, m *wire.Message) (any, []*os.File, error) {
	if m.Method != MethodExited {
		return nil, nil, fmt.Errorf("daemon: unknown method %q", m.Method)
	}
	var e Event
	if err := m.Decode(&e); err != nil {
		return nil, nil, err
	}
	c.events(e)
	return nil, nil, nil
}

func (c *Client) call(ctx context.Context, method string, body, answer any, files ...*os.File) ([]*os.File, error) {
	c.mu.Lock()
	ready := c.ready
	c.mu.Unlock()
	select {
	case <-ready:
	case <-c.done:
		return nil, fmt.Errorf("monitor: %s: %w", method, ErrUnavailable)
	case <-ctx.Done():
		return nil, fmt.Errorf("monitor: %s: %w: %w", method, ErrUnavailable, ctx.Err())
	}
	peer := c.connected()
	if peer == nil {
		return nil, fmt.Errorf("monitor: %s: %w", method, ErrUnavailable)
	}
	got, err := peer.Call(ctx, method, body, answer, files...)
	var remote *wire.RemoteError
	switch {
	case errors.Is(err, wire.ErrClosed):
		c.lost(peer)
		return nil, fmt.Errorf("monitor: %s: %w", method, ErrUnavailable)
	case errors.As(err, &remote):
		if known := wireCodes[remote.Code]; known != nil {
			return nil, &codedError{remote.Text, known}
		}
	}
	return got, err
}

// codedError says what the worker said, and is the sentinel that it meant.
type codedError struct {
	text string
	is   error
}

func (e *codedError) Error() string { return e.text }
func (e *codedError) Unwrap() error { return e.is }

// Create is idempotent by ID.
func (c *Client) Create(ctx context.Context, r CreateRequest) (made Created, err error) {
	_, err = c.call(ctx, MethodCreate, r, &made)
	return made, err
}

// Start lets a created container run and returns when its process has been executed. Idempotent.
func (c *Client) Start(ctx context.Context, id string) (startedAt time.Time, err error) {
	_, err = c.call(ctx, MethodStart, id, &startedAt)
	return startedAt, err
}

// Exec runs until the process ended, ctx is done (then the process and its children are killed) or the timeout.
// It never waits for the process's output to be closed: the caller drains what is there and goes.
func (c *Client) Exec(ctx context.Context, r ExecRequest, io Stdio) (result ExecResult, err error) {
	args := ExecArgs{ExecRequest: r}
	var files []*os.File
	for _, slot := range []struct {
		file *os.File
		came *bool
	}{{io.Stdin, &args.Stdin}, {io.Stdout, &args.Stdout}, {io.Stderr, &args.Stderr}, {io.Console, &args.Console}} {
		if slot.file != nil {
			*slot.came = true
			files = append(files, slot.file)
		}
	}
	_, err = c.call(ctx, MethodExec, args, &result, files...)
	return result, err
}

// Signal sends a signal to the container's first process; SIGKILL goes to every process in it.
func (c *Client) Signal(ctx context.Context, id string, signal int) error {
	_, err := c.call(ctx, MethodSignal, SignalArgs{id, signal}, nil)
	return err
}

// Update changes resource limits: those that are set in r.
func (c *Client) Update(ctx context.Context, id string, r *rspec.LinuxResources) error {
	_, err := c.call(ctx, MethodUpdate, UpdateArgs{id, r}, nil)
	return err
}

// Attach connects to the standard streams from now on.
func (c *Client) Attach(ctx context.Context, id string) (*Attachment, error) {
	var answer AttachAnswer
	files, err := c.call(ctx, MethodAttach, id, &answer)
	if err != nil {
		return nil, err
	}
	a := &Attachment{Terminal: answer.Terminal, StdinOnce: answer.StdinOnce}
	for _, slot := range []struct {
		came bool
		file **os.File
	}{{answer.Stdin, &a.Stdin}, {true, &a.Stdout}, {answer.Stderr, &a.Stderr}} {
		if slot.came && len(files) > 0 {
			*slot.file, files = files[0], files[1:]
		}
	}
	return a, nil
}

// CloseStdin closes the container's standard input for good.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	_, err := c.call(ctx, MethodCloseStdin, id, nil)
	return err
}

// Resize sets the size of a container's terminal.
func (c *Client) Resize(ctx context.Context, id string, width, height uint16) error {
	_, err := c.call(ctx, MethodResize, ResizeArgs{id, width, height}, nil)
	return err
}

// ReopenLog closes the log file at the end of a line and opens LogPath anew.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := c.call(ctx, MethodReopenLog, id, nil)
	return err
}

// Delete kills what is left of a container and forgets it, with its cgroups, state, descriptors and exit record.
// It succeeds if there is nothing.
func (c *Client) Delete(ctx context.Context, id string) error {
	_, err := c.call(ctx, MethodDelete, id, nil)
	return err
}

// List returns every container that the monitor knows, running or exited and not yet deleted.
func (c *Client) List(ctx context.Context) (list []Container, err error) {
	_, err = c.call(ctx, MethodList, nil, &list)
	return list, err
}
