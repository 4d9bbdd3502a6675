package kubelet

import (
	"context"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/status"
)

// tellTime is how long the end of a pod waits for the API server to take the pod's last status: it may itself have been one
// of the pods that ended.
const tellTime = 2 * time.Second

// ActivePods are those that were admitted and have not ended, as the registry has them: their statuses are not filled in.
func (k *Kubelet) ActivePods() []*v1.Pod { return k.pods.active() }

// Terminate ends a pod for a reason of the node's, within some seconds of grace, and waits until nothing of it runs, its
// volumes are unmounted and its status is told.
func (k *Kubelet) Terminate(ctx context.Context, p *v1.Pod, final status.Final, graceSeconds int64) error {
	w := k.pods.find(p.UID)
	if w == nil {
		return nil
	}
	w.end(final, &graceSeconds)
	for {
		changed := k.changes.next()
		if w.isFree() {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ended: %w", ctx.Err())
		case <-changed:
		}
	}
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	return k.status.Settle(ctx, p.UID)
}

// BeginAnew runs static pods again that the node has ended or refused for one of the reasons: nobody else would replace them.
func (k *Kubelet) BeginAnew(reasons ...string) {
	k.pods.beginAnew(func(f *status.Final) bool { return f != nil && slices.Contains(reasons, f.Reason) })
}

// beginAnew lets the workers of static pods end, each of which leaves its pod to the next one.
func (r *registry) beginAnew(chosen func(*status.Final) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if p, ok := w.leave(chosen); ok && len(r.waiting[w.fullName]) == 0 {
			r.waiting[w.fullName] = []*v1.Pod{p}
		}
	}
}

// leave has the worker end once the pod has; false if the pod is not chosen.
func (w *worker) leave(chosen func(*status.Final) bool) (*v1.Pod, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !pod.IsStatic(w.spec) || w.removed || w.begun || !chosen(w.final) {
		return nil, false
	}
	w.begun = true
	w.poke()
	return w.spec, true
}

// beginsAnew is true if another worker shall go on with the pod.
func (w *worker) beginsAnew() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.begun && !w.removed
}

// free notes that the pod holds nothing of the node any more.
func (w *worker) free() {
	w.mu.Lock()
	was := w.freed
	w.freed = true
	w.mu.Unlock()
	if !was {
		w.k.changes.ring()
		w.k.pods.pokeWaiting()
	}
}

func (w *worker) isFree() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.freed
}
