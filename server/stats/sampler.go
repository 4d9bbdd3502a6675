package stats

import (
	"sync"
	"time"
)

// window is the least time over which a rate is measured: over a shorter one it says little. Who asks again within it
// gets the last rate.
const window = time.Second

// sampler makes rates out of counters: each from the counter when somebody asked before. It samples nothing by
// itself, so an idle node does nothing. The zero value is ready.
type sampler struct {
	mu   sync.Mutex
	last map[string]sample
}

type sample struct {
	at    time.Time
	usage uint64 // nanoseconds of processor time
	rate  uint64 // nanoseconds per second
	known bool   // there is a rate
}

func (s *sampler) nanoCores(id string, at time.Time, usage uint64) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]sample{}
	}
	before, ok := s.last[id]
	passed := at.Sub(before.at)
	switch {
	case !ok || usage < before.usage: // the first, or of a cgroup that was made anew
		s.last[id] = sample{at: at, usage: usage}
		return 0, false
	case passed < window:
		return before.rate, before.known
	}
	rate := uint64(float64(usage-before.usage) / passed.Seconds())
	s.last[id] = sample{at, usage, rate, true}
	return rate, true
}

// forget drops what is kept for a container or pod that is gone.
func (s *sampler) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, id)
}
