package kubelet

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
)

// stop ends all containers of the pod and describes what became of them.
func (w *worker) stop(ctx context.Context, v view) error {
	have, err := w.look(ctx)
	if err != nil {
		return err
	}
	w.report(ctx, v, have)
	if !w.stopped {
		w.k.probes.StopLiveness(w.uid)
		w.stopped = true
	}
	if err := w.meanwhile(ctx, v, func() error { return w.killPod(ctx, v.pod, have, v.grace) }); err != nil {
		return err
	}
	if have, err = w.look(ctx); err != nil {
		return err
	}
	if have.Running() {
		return fmt.Errorf("the runtime says that it stopped the pod, and that something of it runs")
	}
	v.stage = ended
	w.report(ctx, v, have)
	return nil
}

// cleanUp frees what a pod held that has ended, and once the pod is not wanted any more, removes all of it.
func (w *worker) cleanUp(ctx context.Context, v view) (gone bool, err error) {
	if err := w.freeAll(ctx); err != nil {
		return false, err
	}
	if w.beginsAnew() {
		w.k.status.Forget(w.uid)
		return true, nil
	}
	if v.pod.DeletionTimestamp == nil && !v.removed {
		return false, nil // it stays, for its status and logs to be read
	}
	if err := w.vanish(ctx, v.pod); err != nil {
		return false, err
	}
	if v.removed {
		if err := w.dropMirror(ctx, v.pod); err != nil {
			return false, err
		}
		w.k.status.Forget(w.uid)
		return true, nil
	}
	w.k.status.End(w.uid, w.apiPod(v.pod)) // the API server lets it go, and its source tells us
	return false, nil
}

// freeAll frees what the pod held of the node.
func (w *worker) freeAll(ctx context.Context) error {
	if w.isFree() {
		return nil
	}
	w.k.probes.Remove(w.uid)
	if err := w.k.cfg.Volumes.TearDown(ctx, w.uid); err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	if err := w.k.cfg.Cgroups.Remove(w.uid); err != nil {
		return err
	}
	w.k.cfg.Objects.Unregister(w.uid)
	w.k.crashes.Forget(w.uid)
	w.k.images.Forget(w.uid)
	w.free()
	return nil
}

// vanish removes all that the runtime has of the pod, once.
func (w *worker) vanish(ctx context.Context, p *v1.Pod) error {
	if w.vanished {
		return nil
	}
	have, err := w.look(ctx)
	if err != nil {
		return err
	}
	if err := w.removeAll(ctx, p, have); err != nil {
		return err
	}
	if err := w.k.cfg.UserIDs.Release(w.uid); err != nil {
		return err
	}
	w.settle()
	w.vanished = true
	return nil
}

// settle heeds what happened in the runtime while the pod was removed.
func (w *worker) settle() {
	w.mu.Lock()
	w.read = time.Now()
	w.mu.Unlock()
}

// removeAll removes sandboxes, with all containers, and logs.
func (w *worker) removeAll(ctx context.Context, p *v1.Pod, have *runtime.Pod) error {
	for _, c := range have.Containers {
		w.unlinkLog(c)
	}
	for _, s := range have.Sandboxes {
		if _, err := w.k.cfg.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil && status.Code(err) != codes.NotFound {
			return fmt.Errorf("remove sandbox %s: %w", s.Id, err)
		}
	}
	return removeLogs(w.k.cfg.Spec.LogDir(p))
}

// apiPod is the pod as the API server knows it: of a static pod its mirror, which may not be there.
func (w *worker) apiPod(p *v1.Pod) *v1.Pod {
	if pod.IsStatic(p) {
		m := w.k.pods.mirror(w.fullName)
		if m == nil || m.Annotations[pod.MirrorAnnotation] != p.Annotations[pod.HashAnnotation] {
			return nil
		}
		return m
	}
	return p
}
