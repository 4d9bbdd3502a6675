package proxy

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// The time after a failure until all is tried again, which doubles up to the maximum.
const (
	firstRetry = time.Second
	maxRetry   = 30 * time.Second
)

// restoreGap lies between the end of a restoration and the begin of the next one of what others changed: a program that fights for the same rules must not have
// us set all of them again and again.
const restoreGap = 5 * time.Second

// loop tells the backend what is pending, as soon as something is.
func (p *Proxy) loop(ctx context.Context) {
	retry, heed := time.NewTimer(0), time.NewTimer(0)
	retry.Stop()
	heed.Stop()
	wait := firstRetry
	tampered, restoring := p.Backend.Tampered(), false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tampered:
			tampered, restoring = nil, true // until heed: what is told meanwhile waits there
			p.note(func() { p.outdated++ })
			continue
		case <-heed.C:
			tampered = p.Backend.Tampered()
			continue
		case <-p.wake:
		case <-retry.C:
		}
		began := time.Now()
		if p.sync(ctx) {
			retry.Stop()
			wait = firstRetry
		} else {
			retry.Reset(wait)
			wait = min(2*wait, maxRetry)
		}
		if restoring {
			restoring = false
			heed.Reset(restoreGap)
		}
		if !pause(ctx, p.MinInterval-time.Since(began)) {
			return
		}
	}
}

// pause is false if ctx ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// sync makes the kernel hold what the objects say by now.
func (p *Proxy) sync(ctx context.Context) bool {
	s := p.take()
	if s.Err == nil && (s.Full || len(s.Changes) > 0) {
		s.Began = time.Now()
		if s.Full {
			s.Err = p.Backend.Replace(ctx, model.Rules{Network: s.Network, Ports: s.Ports})
		} else {
			s.Err = p.Backend.Apply(ctx, s.Changes)
		}
	}
	s.Ended = time.Now()
	if s.Full {
		// A transaction of everything takes as much memory again as everything does, and then nothing needs it for long.
		debug.FreeOSMemory()
	}
	p.settle(s)
	if ctx.Err() != nil {
		return true
	}
	for _, o := range p.Observers {
		o.Synced(s)
	}
	p.tell(s)
	return s.Err == nil
}

// take is what is pending. The network is asked for only if something of it may be another: it may have to list the
// addresses of interfaces.
func (p *Proxy) take() Sync {
	p.mu.Lock()
	s := Sync{Full: p.outdated != p.replaced, Began: time.Now(), Node: p.node, Network: p.network, outdated: p.outdated}
	cidrs, ask := p.cidrs, p.recheck || s.Full
	p.recheck = false
	p.mu.Unlock()
	if ask {
		s.Network, s.Err = p.Network(s.Node, cidrs)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending = false
	s.Full = s.Full || !s.Network.Equal(p.network)
	if s.Full && s.Err == nil {
		p.state.SetNetwork(s.Network)
	}
	p.unsaid = append(p.unsaid, p.state.Commit()...)
	s.Changes, s.Triggers = p.unsaid, p.triggers
	p.unsaid, p.triggers = nil, nil
	if s.Full {
		s.Ports = slices.Collect(p.state.Ports())
	}
	s.HealthChecks = p.state.HealthChecks()
	return s
}

// settle keeps what failed for the next time, which begins anew.
func (p *Proxy) settle(s Sync) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case s.Err != nil:
		p.outdated++
		p.unsaid = append(s.Changes, p.unsaid...)
		p.triggers = append(s.Triggers, p.triggers...)
	case s.Full:
		p.replaced, p.network = s.outdated, s.Network
	}
}

func (p *Proxy) tell(s Sync) {
	took := s.Ended.Sub(s.Began)
	switch {
	case s.Err != nil:
		p.Log.Error("the rules could not be set", "err", s.Err, "dur", took)
	case s.Full:
		p.Log.Info("all rules are set", "ports", len(s.Ports), "dur", took)
	case len(s.Changes) > 0:
		p.Log.Debug("changes are set", "ports", len(s.Changes), "first", fmt.Sprint(s.Changes[0].Key()), "dur", took)
	}
}
