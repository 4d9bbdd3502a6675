package probe

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// schedule says when the attempts of one probe of one running container are made:
//
//	startup, readiness   E·E··E····E········T──────────T──────────T     T: a tick, each period; its result counts
//	liveness             └─ started ────────T──────────T──────────T     E: an early attempt: only a success counts
//
// The API promises a container failureThreshold * periodSeconds from its start, and an initial delay before that. So a
// failure counts for the first time one period after the start. kubelet's ticks begin when it first sees the pod, so
// there the first one comes at any time within the period. Until then startup and readiness are tried early, with
// growing pauses: a server that listens after 20 ms must not wait for the first tick to be found ready. After a
// success or a poke the ticks go on from there.
//
// Like those of a Go ticker, one tick waits for an attempt that takes longer than the period, and more are lost.
type schedule struct {
	period time.Duration
	first  time.Time // of all attempts
	tick   time.Time // the next one that counts
	at     time.Time // the next attempt: tick, or an early one before it
	pause  time.Duration
}

// Early attempts. Failures in the first quiet time are so common that nobody is told.
const (
	firstPause = 50 * time.Millisecond
	quietTime  = time.Second
)

type scheduleInput struct {
	now          time.Time
	startedAt    time.Time // of the container
	adopted      bool      // it ran before this process did
	managerStart time.Time
	rand         func() float64
}

func newSchedule(kind Kind, spec *v1.Probe, in scheduleInput) *schedule {
	s := &schedule{period: period(spec)}
	if in.startedAt.IsZero() || in.startedAt.After(in.now) {
		in.startedAt = in.now
	}
	earliest := in.startedAt.Add(time.Duration(spec.InitialDelaySeconds) * time.Second)
	if earliest.Before(in.now) {
		earliest = in.now
	}
	switch {
	case in.adopted && in.now.Sub(in.managerStart) < s.period:
		// This process was restarted. The probes of all pods at once would be a storm.
		spread := in.managerStart.Add(time.Duration(in.rand() * float64(s.period)))
		s.first = later(spread, earliest)
		s.tick = s.first
	case kind == Liveness:
		s.tick = in.startedAt.Add(s.period)
		if missing := earliest.Sub(s.tick); missing > 0 {
			s.tick = s.tick.Add((missing + s.period - 1) / s.period * s.period)
		}
		s.first = s.tick
	default:
		s.first, s.pause = earliest, firstPause
		s.tick = earliest.Add(s.period)
	}
	s.at = s.first
	return s
}

func period(spec *v1.Probe) time.Duration {
	const unset = 10 // seconds, the API's default
	if spec.PeriodSeconds <= 0 {
		return unset * time.Second
	}
	return time.Duration(spec.PeriodSeconds) * time.Second
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// early is true for an attempt whose failure does not count.
func (s *schedule) early() bool { return s.at.Before(s.tick) }

// quiet is true if a failure at now is not worth an event.
func (s *schedule) quiet(now time.Time) bool { return s.early() && now.Sub(s.first) < quietTime }

// poked makes now a tick.
func (s *schedule) poked(now time.Time) { s.tick, s.at = now, now }

// done plans the next attempt after one that began at began and ended now.
func (s *schedule) done(began, now time.Time, success bool) {
	switch {
	case s.early() && success:
		s.tick = began
		s.nextTick(now)
	case s.early():
		s.at = now.Add(s.pause)
		s.pause *= 2
		if !s.at.Before(s.tick) {
			s.at = s.tick
		}
	default:
		s.nextTick(now)
	}
}

func (s *schedule) nextTick(now time.Time) {
	s.tick = s.tick.Add(s.period)
	if late := now.Sub(s.tick); late > 0 {
		s.tick = s.tick.Add(late / s.period * s.period)
	}
	s.at = s.tick
}
