package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/oci/runtime"
)

// start lets a created container run. A repeat returns the time of the first.
func (w *Worker) start(id string) (*time.Time, error) {
	c, err := w.get(id)
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if at := c.started.Load(); at != nil {
		return at, nil
	}
	if c.exit.Load() != nil {
		return nil, fmt.Errorf("container %s: %w: %w", id, conmon.ErrNotRunning, errDead)
	}
	if c.file(fileStart) == nil { // else an earlier worker began to start it
		fifo, err := w.runtime.OpenStart(id)
		if err != nil {
			return nil, fmt.Errorf("container %s: start: %w", id, err)
		}
		c.put(fileStart, fifo)
		if err := w.hold(c, fileStart); err != nil {
			return nil, err
		}
	}
	began, err := c.awaitStart()
	if err != nil {
		return nil, fmt.Errorf("container %s: start: %w", id, err)
	}
	if !began {
		w.dropStart(c)
		return nil, fmt.Errorf("container %s: start: %w", id, errDead)
	}
	return w.endStart(c)
}

// awaitStart waits until the container's process has gone on, or has ended without. One that goes on may end at once, so
// its end says nothing: what it wrote before is asked for.
func (c *container) awaitStart() (bool, error) {
	fifo := c.file(fileStart)
	if fifo == nil {
		return c.wentOn.Load(), nil // released: it has ended
	}
	waited := make(chan struct{})
	defer close(waited)
	go func() {
		select {
		case <-c.ended:
			_ = fifo.SetReadDeadline(time.Now())
		case <-waited:
		}
	}()
	began, err := runtime.Started(fifo)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		began, err = runtime.HasStarted(fifo)
	}
	if err != nil && c.exit.Load() != nil { // released meanwhile
		return c.wentOn.Load(), nil
	}
	return began, err
}

// noteStarted is for a container that has ended while it was being started: it notes what the file tells that is about to
// be closed.
func (c *container) noteStarted() {
	if fifo := c.file(fileStart); fifo != nil {
		began, err := runtime.HasStarted(fifo)
		c.wentOn.Store(began && err == nil)
	}
}

// endStart writes down that a container has been started.
func (w *Worker) endStart(c *container) (*time.Time, error) {
	now := time.Now()
	c.started.Store(&now)
	err := errors.Join(w.noteStart(c.id, now), w.runtime.EndStart(c.id))
	w.dropStart(c)
	return &now, err
}

func (w *Worker) dropStart(c *container) {
	if f := c.take(fileStart); f != nil {
		f.Close()
		w.drop(c.id, fileStart)
	}
}

func (w *Worker) noteStart(id string, at time.Time) error {
	r, err := w.loadRecord(id)
	if err != nil {
		return err
	}
	r.StartedAt = at
	return w.saveRecord(r)
}

func (w *Worker) signal(id string, signal int) error {
	c, err := w.running(id)
	if err != nil {
		return err
	}
	return w.send(c, unix.Signal(signal))
}

// send signals the container's first process through its pidfd, so that the signal can't reach another one.
func (w *Worker) send(c *container, signal unix.Signal) error {
	if signal == unix.SIGKILL && c.sharesPIDs {
		err := w.runtime.Signal(c.id, signal)
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		return err
	}
	pidfd := c.file(filePidfd)
	if pidfd == nil {
		return fmt.Errorf("%w: %s", conmon.ErrNotRunning, c.id)
	}
	err := signalTo(pidfd, signal)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%w: %s", conmon.ErrNotRunning, c.id)
	}
	return err
}

func signalTo(pidfd *os.File, signal unix.Signal) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), signal, nil, 0) })
	return errors.Join(err, serr)
}

func (w *Worker) update(a conmon.UpdateArgs) error {
	if _, err := w.running(a.ID); err != nil {
		return err
	}
	if a.Resources == nil {
		return fmt.Errorf("container %s: no resources to update", a.ID)
	}
	return w.runtime.Update(a.ID, a.Resources)
}

// delete kills what is left of a container and forgets it.
func (w *Worker) delete(ctx context.Context, id string) error {
	c := w.find(id)
	if c == nil {
		return w.forget(id)
	}
	if err := w.kill(ctx, c); err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if w.find(id) != c {
		return nil // another delete was faster
	}
	if err := w.kill(ctx, c); err != nil { // it was being made a moment ago
		return err
	}
	if err := w.forget(id); err != nil {
		return err
	}
	w.remove(c)
	return nil
}

func (w *Worker) kill(ctx context.Context, c *container) error {
	if c.pid.Load() == 0 || c.exit.Load() != nil {
		return nil
	}
	if err := w.send(c, unix.SIGKILL); err != nil && !errors.Is(err, conmon.ErrNotRunning) {
		return fmt.Errorf("container %s: kill: %w", c.id, err)
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s: killed and not ended: %w", c.id, conmon.ErrTimeout)
	}
}

// forget removes what is on disk.
func (w *Worker) forget(id string) error {
	// A create that was cut short, and whose cgroup could not be purged then, has a record that says where to look.
	if r, err := w.loadRecord(id); err == nil && r.Pid == 0 {
		if err := w.purge(id, r.CgroupsPath, r.Systemd); err != nil {
			return err
		}
	}
	if err := w.runtime.Delete(id); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return w.unrecord(id)
}
