package server

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/orlop/orlop/server/store"
)

// progress tells which step of its main path something is in, since when, and how long those before it took.
type progress struct {
	mu      sync.Mutex
	step    string // "" while none is under way
	since   time.Time
	timings store.Timings
}

func (p *progress) enter(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaveLocked()
	p.step, p.since = step, time.Now()
}

func (p *progress) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaveLocked()
}

func (p *progress) leaveLocked() {
	if p.step == "" {
		return
	}
	p.timeLocked(p.step, time.Since(p.since))
	p.step = ""
}

// time adds what a part of a step took, as "step/part".
func (p *progress) time(part string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step != "" {
		part = p.step + "/" + part
	}
	p.timeLocked(part, d)
}

func (p *progress) timeLocked(step string, d time.Duration) {
	if p.timings == nil {
		p.timings = store.Timings{}
	}
	p.timings[step] = d
}

// took returns the timings so far.
func (p *progress) took() store.Timings {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.timings)
}

// String is for the error of a caller who does not wait any longer.
func (p *progress) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step == "" {
		return "waiting for its turn"
	}
	return fmt.Sprintf("still in step %s since %.1fs", p.step, time.Since(p.since).Seconds())
}
