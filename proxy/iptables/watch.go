package iptables

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// lookEvery is how often the canaries are looked at: as often as kube-proxy does.
const lookEvery = 30 * time.Second

// watch looks whether the canaries are still there: a chain in each table that falls to whoever flushes it.
type watch struct {
	log      *slog.Logger
	tampered chan struct{}
	stop     context.CancelFunc
	ended    sync.WaitGroup
}

func newWatch(log *slog.Logger) *watch {
	return &watch{log: log, tampered: make(chan struct{}, 1), stop: func() {}}
}

// begin looks from now on, in these families.
func (w *watch) begin(families []model.Family) {
	w.close()
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.ended.Go(func() {
		ticks := time.NewTicker(lookEvery)
		defer ticks.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
			}
			if missing(ctx, families) && ctx.Err() == nil {
				w.log.Warn("iptables rules are to be restored", "why", "a table was flushed by another program")
				select {
				case w.tampered <- struct{}{}:
				default:
				}
			}
		}
	})
}

func missing(ctx context.Context, families []model.Family) bool {
	for _, family := range families {
		for _, table := range []string{mangle, filter, nat} {
			if _, err := run(ctx, nil, programs[family], "-w", "5", "-t", table, "-S", canary); err != nil {
				return true
			}
		}
	}
	return false
}

func (w *watch) close() {
	w.stop()
	w.ended.Wait()
}
