package worker

import (
	"time"

	"github.com/orlop/orlop/conmon/child"
)

// strayTime is for how long a child that has ended is left to those who may be about to wait for it.
const strayTime = 5 * time.Second

// sweep is for a start that failed. One that is cut short, as by its time limit or the end of its container, leaves helpers
// of libcontainer's that nobody waits for: their pids are lost with the message in which they were to be told.
func (w *Worker) sweep() {
	time.AfterFunc(strayTime, func() {
		strays, err := child.Zombies()
		if err != nil {
			w.log.Warn("children that have ended are not found", "err", err)
		}
		if len(strays) > 0 {
			time.AfterFunc(strayTime, func() { w.reapStrays(strays) })
		}
	})
}

// reapStrays reaps those that are still there, but for the containers' own processes: one of these is kept while its exit
// can't be recorded.
func (w *Worker) reapStrays(strays map[int]string) {
	still, err := child.Zombies()
	if err != nil {
		return
	}
	w.mu.Lock()
	for _, c := range w.containers {
		delete(strays, int(c.pid.Load()))
	}
	w.mu.Unlock()
	for pid, start := range strays {
		if still[pid] == start {
			w.log.Info("a child that nobody waited for is reaped", "pid", pid)
			child.Reap(pid)
		}
	}
}
