package server

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// flight is work that several callers may wait for. It runs on the daemon's context, so it does not end with any of
// them.
type flight struct {
	done chan struct{}
	err  error // valid once done is closed
}

// flights lets one flight run at a time; who asks for another while it runs joins it. The zero value is ready.
type flights struct {
	mu  sync.Mutex
	now *flight
}

// start runs f unless one is running, and returns the one that runs.
func (fs *flights) start(s *Server, f func(context.Context) error) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.now != nil {
		return fs.now
	}
	fl := newFlight()
	fs.now = fl
	s.fly(fl, func(ctx context.Context) error {
		defer func() {
			fs.mu.Lock()
			fs.now = nil
			fs.mu.Unlock()
		}()
		return f(ctx)
	})
	return fl
}

func newFlight() *flight { return &flight{done: make(chan struct{})} }

// landed is a flight that has ended well.
func landed() *flight {
	fl := newFlight()
	close(fl.done)
	return fl
}

// fly runs f as fl in the background.
func (s *Server) fly(fl *flight, f func(context.Context) error) {
	s.begin(func(ctx context.Context) {
		fl.err = guarded(ctx, f)
		var p *panicError
		if errors.As(fl.err, &p) {
			s.log.Error("panic", "err", p, "stack", string(p.stack))
		}
		close(fl.done)
	})
}

// guarded turns a panic into an error: it ends this piece of work and not the daemon.
func guarded(ctx context.Context, f func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p, debug.Stack()}
		}
	}()
	return f(ctx)
}

type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("internal error: %v", e.value) }

// wait returns when the flight has ended or just before the caller's deadline, with an error that says what was
// under way.
func (fl *flight) wait(ctx context.Context, p fmt.Stringer) error {
	ctx, cancel := early(ctx)
	defer cancel()
	select {
	case <-fl.done:
		return fl.err
	case <-ctx.Done():
		return fmt.Errorf("%v; repeat the request to join it: %w", p, ctx.Err())
	}
}

// A gRPC client whose deadline has passed makes an error of its own and drops the server's. To be heard, the server
// answers a little earlier.
const (
	earlyPart = 10 // one tenth of the time that is left
	earlyMost = 500 * time.Millisecond
)

// early returns a context that ends before the caller's deadline, by enough for an answer to get there.
func early(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	ahead := min(time.Until(deadline)/earlyPart, earlyMost)
	return context.WithDeadline(ctx, deadline.Add(-ahead))
}

// turn serialises the operations on one pod or container.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }
