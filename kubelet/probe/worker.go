package probe

import (
	"context"
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/probe/check"
)

// maxTries of an attempt that could not be made, at once; then its result is thrown away.
const maxTries = 3

// pokeSpacing is the least time between a poke and the attempt before it: the shortest period that the API allows.
const pokeSpacing = time.Second

// worker serves one probe of one running container.
type worker struct {
	m      *Manager
	slot   *slot
	kind   Kind
	spec   *v1.Probe
	pod    *v1.Pod
	cancel context.CancelFunc
	poke   chan struct{}
	target check.Target // guarded by Manager.mu

	times *schedule // the rest is of the worker's goroutine
	last  bool      // the last result that counted, true for success
	inRow int       // as often in a row
}

func (w *worker) pokeOnce() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// run makes attempts until ctx ends or the result is final.
func (w *worker) run(ctx context.Context) {
	defer w.cancel()
	timer := time.NewTimer(time.Until(w.times.at))
	defer timer.Stop()
	var began time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.poke:
			now := time.Now()
			if w.times.early() || now.Before(w.times.first) || now.Sub(began) < pokeSpacing {
				continue
			}
			w.times.poked(now)
		}
		began = time.Now()
		result, ok := w.attempt(ctx)
		if ctx.Err() != nil || (ok && w.count(ctx, result)) {
			return
		}
		w.times.done(began, time.Now(), ok && result)
		timer.Reset(time.Until(w.times.at))
	}
}

// attempt is ok if there is a result, success or not.
func (w *worker) attempt(ctx context.Context) (success, ok bool) {
	w.m.mu.Lock()
	target := w.target
	w.m.mu.Unlock()
	var (
		result check.Result
		output string
		err    error
	)
	for range maxTries {
		if result, output, err = w.m.prober.Once(ctx, w.spec, target); err == nil || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return false, false
	}
	w.tell(result, output, err)
	return result == check.Success || result == check.Warning, err == nil
}

// tell counts the attempt and reports it as an event if it is worth one, with kubelet's wording.
func (w *worker) tell(result check.Result, output string, err error) {
	w.m.countAttempt(w.slot, result, err)
	reason, message := "", ""
	switch {
	case err != nil:
		reason, message = UnhealthyReason, w.kind.String()+" probe errored and resulted in "+result.String()+" state: "+err.Error()
	case result == check.Warning:
		reason, message = WarningReason, w.kind.String()+" probe warning: "+output
	case result == check.Failure:
		reason, message = UnhealthyReason, w.kind.String()+" probe failed: "+output
	default:
		return
	}
	w.m.cfg.Log.Debug("probe", "pod", pod.Ref(w.pod), "container", w.target.Container.Name, "message", message)
	if !w.times.quiet(time.Now()) {
		w.m.cfg.Event(w.pod, w.target.Container, v1.EventTypeWarning, reason, message)
	}
}

// count takes a result into account and says whether it is final.
func (w *worker) count(ctx context.Context, success bool) (final bool) {
	if !success && w.times.early() {
		return false
	}
	if w.inRow > 0 && w.last == success {
		w.inRow++
	} else {
		w.last, w.inRow = success, 1
	}
	if w.inRow < w.threshold(success) {
		return false
	}
	return w.m.decide(ctx, w, success)
}

func (w *worker) threshold(success bool) int {
	const unsetFailure = 3 // the API's default
	switch {
	case success:
		return int(max(w.spec.SuccessThreshold, 1))
	case w.spec.FailureThreshold <= 0:
		return unsetFailure
	}
	return int(w.spec.FailureThreshold)
}

// decide stores a result that counts, and says whether it is final. The worker may have been replaced meanwhile.
func (m *Manager) decide(ctx context.Context, w *worker, success bool) (final bool) {
	m.mu.Lock()
	if ctx.Err() != nil { // workers are cancelled under mu
		m.mu.Unlock()
		return true
	}
	key := resultKey{w.target.ContainerID, w.kind}
	before, known := m.results[key]
	m.results[key] = result{success, w.verdict(success)}
	final = w.kind == Startup || (w.kind == Liveness && !success)
	if final {
		w.slot.worker = nil
	}
	m.mu.Unlock()
	changed := !known || before.success != success
	if w.kind == Liveness {
		changed = changed && !success // that it lives is no news
	}
	if changed {
		m.cfg.Changed(w.pod.UID)
	}
	return final
}

// verdict is nil for a result that kills nobody.
func (w *worker) verdict(success bool) *Verdict {
	if success || w.kind == Readiness {
		return nil
	}
	what := "Container"
	if pod.IsSidecar(w.target.Container) {
		what = "Init container"
	}
	return &Verdict{
		Kind:         w.kind,
		Message:      fmt.Sprintf("%s %s failed %s probe", what, w.target.Container.Name, strings.ToLower(w.kind.String())),
		GraceSeconds: w.spec.TerminationGracePeriodSeconds,
	}
}
