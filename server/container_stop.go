package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/store"
)

// stop is the ending of a container that runs. There is one at a time, whoever asks: a later caller may only make it
// sooner. It holds no lock while it waits, so a process that can't be killed keeps nobody from anything else.
type stop struct {
	mu       sync.Mutex
	active   bool
	deadline time.Time     // when SIGKILL is sent
	sooner   chan struct{} // has something in it when the deadline has moved
	signal   string        // that was sent first, "" for none
}

// StopContainer asks the container to end and kills it when the timeout has passed. It may be repeated, also with a
// shorter timeout while another waits, and succeeds for a container that has ended or is not there.
func (s *Server) StopContainer(ctx context.Context, req *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	c, err := s.containers.find(req.GetContainerId())
	if errors.Is(err, store.ErrNotFound) {
		return &cri.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("container: %w", err)
	}
	if err := s.stopContainer(ctx, c, graceOf(req.GetTimeout())); err != nil {
		return nil, fmt.Errorf("container %s: stop: %w", c.id, err)
	}
	return &cri.StopContainerResponse{}, nil
}

// graceOf is a timeout in seconds as clients give it: negative means none, and a huge one must not overflow.
func graceOf(seconds int64) time.Duration {
	return time.Duration(min(max(seconds, 0), math.MaxInt64/int64(time.Second))) * time.Second
}

// endContainer ends a container at once: one that is being made is given up.
func (s *Server) endContainer(ctx context.Context, c *container) error {
	c.cancel()
	select {
	case <-c.made.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	c.enter("stop")
	defer c.leave()
	return s.stopContainer(ctx, c, 0)
}

// stopContainer returns when the container's end is on record.
func (s *Server) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	if !c.alive() {
		return nil
	}
	if c.state() == store.ContainerCreated {
		grace = 0 // there is no program yet to end in its own way
	}
	s.askStop(c, time.Now().Add(grace))
	ctx, cancel := early(ctx)
	defer cancel()
	since := time.Now()
	select {
	case <-c.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s since %.1fs: %w", c.stop.describe(), time.Since(since).Seconds(), ctx.Err())
	}
}

func (st *stop) describe() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	if left := time.Until(st.deadline); left > 0 {
		return fmt.Sprintf("sent %s and SIGKILL follows in %.1fs; waiting", st.signal, left.Seconds())
	}
	return "sent SIGKILL and its process has not ended; waiting"
}

// askStop begins to end the container, or makes the ending under way end sooner.
func (s *Server) askStop(c *container, deadline time.Time) {
	st := &c.stop
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.active {
		if deadline.Before(st.deadline) {
			st.deadline = deadline
			select {
			case st.sooner <- struct{}{}:
			default: // it has yet to look at the last change
			}
		}
		return
	}
	st.active, st.deadline, st.sooner, st.signal = true, deadline, make(chan struct{}, 1), ""
	if time.Until(deadline) > 0 {
		st.signal = c.rec.Load().StopSignal
	}
	first := st.signal
	s.begin(func(ctx context.Context) {
		s.end(ctx, c, first)
		st.mu.Lock()
		st.active = false
		st.mu.Unlock()
	})
}

// end runs until the container has ended: signal, wait, SIGKILL, and SIGKILL again with a growing pause.
func (s *Server) end(ctx context.Context, c *container, signal string) {
	if signal != "" {
		s.signal(ctx, c, signalNumber(signal))
	}
	timer := time.NewTimer(time.Until(c.stop.when()))
	defer timer.Stop()
	for kills := 0; ; {
		select {
		case <-c.exited:
			return
		case <-ctx.Done():
			return
		case <-c.stop.sooner:
			if kills == 0 {
				timer.Reset(time.Until(c.stop.when()))
			}
		case <-timer.C:
			s.signal(ctx, c, int(unix.SIGKILL))
			kills++
			timer.Reset(pause(kills))
			if kills > 1 {
				s.log.Warn("container is not killed yet", "container", c.id, "tries", kills)
			}
		}
	}
}

func (st *stop) when() time.Time {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.deadline
}

// signal does not tell its caller of errors: whatever they are, what counts is whether the container ends.
func (s *Server) signal(ctx context.Context, c *container, number int) {
	_, err := retry(ctx, func() (any, error) { return nil, s.monitor.Signal(ctx, string(c.id), number) })
	if errors.Is(err, conmon.ErrNotRunning) || errors.Is(err, conmon.ErrNotFound) {
		err = s.lookAgain(ctx) // its end has been seen, or nobody will ever tell
	}
	if err != nil {
		s.log.Warn("signal is not sent", "container", c.id, "signal", signalName(number), "err", err)
	}
}
