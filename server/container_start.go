package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/store"
)

// startFailedCode is the exit code of a container whose program never ran, as shells have it for what can't be run.
const startFailedCode = 128

// StartContainer may be repeated while it is under way: the repeat joins it. One that is over is an error, as with
// other runtimes: the kubelet looks at the status before it starts anything.
func (s *Server) StartContainer(ctx context.Context, req *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	c, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	started := c.starting.start(s, func(ctx context.Context) error { return s.startContainer(ctx, c) })
	if err := started.wait(ctx, &c.progress); err != nil {
		return nil, fmt.Errorf("container %s: start: %w", c.id, err)
	}
	return &cri.StartContainerResponse{}, nil
}

// findContainer finds a container that clients may see.
func (s *Server) findContainer(id string) (*container, error) {
	c, err := s.containers.find(id)
	if err == nil && !c.visible() {
		err = fmt.Errorf("%q: %w", id, store.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("container %w", err)
	}
	return c, nil
}

func (s *Server) startContainer(ctx context.Context, c *container) error {
	if err := c.turn.take(ctx); err != nil {
		return err
	}
	defer c.turn.give()
	if state := c.state(); state != store.ContainerCreated {
		return fmt.Errorf("%w: it is %s and not created", store.ErrState, state)
	}
	if err := c.pod.ready(); err != nil {
		return err
	}
	c.enter("start")
	at, err := retry(ctx, func() (time.Time, error) { return s.monitor.Start(ctx, string(c.id)) })
	c.leave()
	if err != nil {
		return errors.Join(err, s.startFailed(ctx, c, err))
	}
	if err := c.setRunning(at); err != nil {
		return err
	}
	s.tell(cri.ContainerEventType_CONTAINER_STARTED_EVENT, c)
	return nil
}

// setRunning puts the start on record. The container's end may have been recorded already: a program can be that
// fast.
func (c *container) setRunning(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	started := func(rec *store.Container) { rec.StartedAt, rec.Timings = at, c.took() }
	if rec := *c.rec.Load(); rec.State == store.ContainerExited || rec.State == store.ContainerRunning {
		started(&rec)
		return c.putLocked(&rec)
	}
	return c.moveLocked(store.ContainerRunning, started)
}

// startFailed ends a container whose program could not be run. Where it is unknown whether it runs, what the monitor
// says later counts.
func (s *Server) startFailed(ctx context.Context, c *container, cause error) error {
	if errors.Is(cause, conmon.ErrUnavailable) || ctx.Err() != nil {
		return nil
	}
	err := s.setExited(c, &store.Exit{ // before the kill, whose exit code would say less
		Code: startFailedCode, Reason: "StartError", Message: cause.Error(), FinishedAt: time.Now(),
	})
	killed := s.monitor.Signal(ctx, string(c.id), int(unix.SIGKILL))
	if errors.Is(killed, conmon.ErrNotRunning) || errors.Is(killed, conmon.ErrNotFound) {
		killed = nil
	}
	return errors.Join(err, killed)
}
