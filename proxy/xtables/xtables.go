package xtables

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// Handle has the programs of both families, and watches what they make.
type Handle struct {
	Programs map[model.Family]*Program
	watch    *watch
}

// askTimeout is for questions to the programs.
const askTimeout = 30 * time.Second

// Open finds the programs for the network namespace of the process. The rules in hooks are those whose end is noticed;
// nothing is changed. Poll is [UsualPoll] but in tests.
func Open(log *slog.Logger, hooks []Hook, poll time.Duration) (*Handle, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	h := &Handle{Programs: map[model.Family]*Program{}}
	for family := range names {
		p, err := find(ctx, family)
		if err != nil {
			return nil, err
		}
		h.Programs[family] = p
	}
	var err error
	if h.watch, err = newWatch(log, h.Programs, hooks, poll); err != nil {
		return nil, fmt.Errorf("iptables: watch: %w", err)
	}
	return h, nil
}

// Settled is to be called after each change, when all of it is done.
func (h *Handle) Settled() error { return h.watch.settled(h.Programs) }

// Tampered tells that somebody else changed our chains, or the hooks to them.
func (h *Handle) Tampered() <-chan struct{} { return h.watch.tampered }

// Close ends the watch.
func (h *Handle) Close() error { return h.watch.close() }
