package image

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// group runs each piece of work once for all who want it at the same time. The work goes on as long as one of them
// stays, whoever began it; when the last one leaves it is cancelled, and its result is dropped.
type group[V any] struct {
	drop func(V) // gives a result back; may be nil

	mu      sync.Mutex
	closed  bool
	flights map[string]*flight[V]
	running sync.WaitGroup
}

// flight is one piece of work.
type flight[V any] struct {
	group  *group[V]
	key    string
	cancel context.CancelFunc
	done   chan struct{} // closed when value and err are set
	value  V
	err    error
	refs   int // who wants the result; group.mu guards it
}

func newGroup[V any](drop func(V)) *group[V] {
	return &group[V]{drop: drop, flights: map[string]*flight[V]{}}
}

// join takes part in the work of that key, and begins it if nobody does it. Every join needs one leave. The context
// that run gets is not the caller's: it ends when the last one leaves.
func (g *group[V]) join(key string, run func(ctx context.Context) (V, error)) (f *flight[V], begun bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f, ok := g.flights[key]; ok {
		f.refs++
		return f, false
	}
	ctx, cancel := context.WithCancel(context.Background())
	f = &flight[V]{group: g, key: key, cancel: cancel, done: make(chan struct{}), refs: 1}
	if g.closed {
		f.err = errClosed
		cancel()
		close(f.done)
		return f, true
	}
	g.flights[key] = f
	g.running.Go(func() {
		defer close(f.done)
		f.value, f.err = safely(ctx, run)
		if f.err != nil {
			g.forget(f) // the next one to come begins anew
		}
	})
	return f, true
}

var errClosed = errors.New("the image service is closed")

// close cancels all work, waits until it has ended, and lets none begin.
func (g *group[V]) close() {
	g.mu.Lock()
	g.closed = true
	for _, f := range g.flights {
		f.cancel()
	}
	g.mu.Unlock()
	g.running.Wait()
}

// safely makes an error of a panic: hostile input may find one in a parser, and must not end the daemon.
func safely[V any](ctx context.Context, run func(ctx context.Context) (V, error)) (v V, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return run(ctx)
}

func (g *group[V]) forget(f *flight[V]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flights[f.key] == f {
		delete(g.flights, f.key)
	}
}

// wait returns the result, or ctx's error if that ends first; the work goes on then.
func (f *flight[V]) wait(ctx context.Context) (V, error) {
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var none V
		return none, context.Cause(ctx)
	}
}

// leave gives up the interest in the work. The last one ends it and waits until it has ended, so nothing of it is
// left when leave returns.
func (f *flight[V]) leave() {
	f.group.mu.Lock()
	f.refs--
	last := f.refs == 0
	if last && f.group.flights[f.key] == f {
		delete(f.group.flights, f.key)
	}
	f.group.mu.Unlock()
	if !last {
		return
	}
	f.cancel()
	<-f.done
	if f.err == nil && f.group.drop != nil {
		f.group.drop(f.value)
	}
}
