package server

import (
	"context"
	"time"

	"github.com/orlop/orlop/server/store"
)

// What could not be undone is tried again after a pause that doubles from the first to the last of these.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

func pause(tries int) time.Duration {
	d := firstPause
	for ; tries > 1 && d < lastPause; tries-- {
		d *= 2
	}
	return min(d, lastPause)
}

// later runs f after a pause on the daemon's context, unless that ends before: the record says what is left to do.
func (s *Server) later(after time.Duration, f func()) {
	s.begin(func(ctx context.Context) {
		timer := time.NewTimer(after)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
			f()
		}
	})
}

func nextPending(last *store.Pending, err error) *store.Pending {
	next := store.Pending{Since: time.Now()}
	if last != nil {
		next = *last
	}
	next.Err = err.Error()
	next.Tries++
	return &next
}

// pendPod keeps on record why a stop or remove of a pod could not be finished, and has it tried again.
func (s *Server) pendPod(p *pod, cause error) {
	pending := nextPending(p.rec.Load().Pending, cause)
	s.log.Warn("pod is not freed yet", "pod", p.id, "err", cause, "tries", pending.Tries)
	set := func(rec *store.Pod) { rec.Pending = pending }
	if err := p.write(set); err != nil {
		s.log.Warn("pending work is not on record", "pod", p.id, "err", err)
		p.note(set)
	}
	if !p.retried.CompareAndSwap(false, true) {
		return
	}
	s.later(pause(pending.Tries), func() {
		p.retried.Store(false)
		s.goOnWithPod(p)
	})
}

// goOnWithPod takes up what a pod's record says is left to do.
func (s *Server) goOnWithPod(p *pod) {
	switch p.state() {
	case store.PodCreating, store.PodRemoving: // a create that failed is removed
		s.removePod(p)
	case store.PodStopping:
		s.stopPod(p)
	}
}

// pendContainer does for a container's removal what pendPod does for a pod's.
func (s *Server) pendContainer(c *container, cause error) {
	pending := nextPending(c.rec.Load().Pending, cause)
	s.log.Warn("container is not freed yet", "container", c.id, "err", cause, "tries", pending.Tries)
	set := func(rec *store.Container) { rec.Pending = pending }
	if err := c.write(set); err != nil {
		s.log.Warn("pending work is not on record", "container", c.id, "err", err)
		c.note(set)
	}
	if !c.retried.CompareAndSwap(false, true) {
		return
	}
	s.later(pause(pending.Tries), func() {
		c.retried.Store(false)
		s.removeContainer(c)
	})
}

// pendingNow lists all that is left to do, for the verbose status.
func (s *Server) pendingNow() []pendingItem {
	items := []pendingItem{}
	for _, p := range s.pods.all() {
		if rec := p.rec.Load(); rec.Pending != nil {
			items = append(items, pendingItem{Pod: rec.ID, State: string(rec.State), Pending: *rec.Pending})
		}
	}
	for _, c := range s.containers.all() {
		if rec := c.rec.Load(); rec.Pending != nil {
			items = append(items, pendingItem{Pod: rec.Pod, Container: rec.ID, State: string(rec.State), Pending: *rec.Pending})
		}
	}
	return items
}

type pendingItem struct {
	Pod       store.PodID       `json:"pod"`
	Container store.ContainerID `json:"container,omitempty"`
	State     string            `json:"state"`
	store.Pending
}
