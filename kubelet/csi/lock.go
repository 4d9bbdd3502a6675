package csi

import (
	"context"
	"sync"
)

// locks are mutexes by name that a caller need not wait for longer than its context lives.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy, isHeld := l.held[name]
		if !isHeld {
			mine := make(chan struct{})
			l.held[name] = mine
			l.mu.Unlock()
			return func() { l.unlock(name, mine) }, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *locks) unlock(name string, mine chan struct{}) {
	l.mu.Lock()
	delete(l.held, name)
	l.mu.Unlock()
	close(mine)
}
