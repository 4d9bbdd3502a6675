package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/resource"
	"github.com/orlop/orlop/kubelet/runtime"
)

// How often what nobody wants is looked for: soon after the start, then now and then, as each pod removes its own.
const (
	firstSweep = 2 * time.Second
	nextSweeps = time.Minute
)

// housekeep removes what pods left that no source knows: those that were deleted while this process was away.
func (k *Kubelet) housekeep(ctx context.Context) {
	timer := time.NewTimer(firstSweep)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if k.pods.allReady() {
			if err := k.sweep(ctx); err != nil && ctx.Err() == nil {
				k.log.Warn("orphaned pods not swept; will be tried again", "err", err)
			}
			timer.Reset(nextSweeps)
		} else {
			timer.Reset(firstSweep)
		}
	}
}

func (k *Kubelet) sweep(ctx context.Context) error {
	logs, err := k.logDirs() // before the pods are asked for: the directory of a pod that comes later is not among them
	if err != nil {
		return err
	}
	have, err := k.reader.List(ctx)
	if err != nil {
		return err
	}
	known := k.pods.known()
	for uid := range have {
		if !known[uid] {
			orphan, err := k.restore(ctx, uid)
			if err != nil {
				return err
			}
			k.log.Info("ending a pod that no source has", "pod", pod.Ref(orphan), "uid", uid)
			k.pods.adopt(orphan)
			known[uid] = true
		}
	}
	for uid, dir := range logs {
		if !known[uid] {
			if err := removeLogs(dir); err != nil {
				return err
			}
		}
	}
	// A storage driver that is away keeps its volumes from being removed, and nothing else.
	orphans := k.cfg.Volumes.Orphans(ctx, known)
	uids, err := k.cfg.Cgroups.Pods()
	if err != nil {
		return err
	}
	for _, uid := range uids {
		if !known[uid] {
			if err := k.cfg.Cgroups.Remove(uid); err != nil {
				return err
			}
		}
	}
	return errors.Join(orphans, k.cfg.Cgroups.SetBurstable(resource.Burstable(k.pods.active())))
}

// restore makes as much of a pod's spec as its sandboxes and containers tell: enough to end it as it wants to be ended.
func (k *Kubelet) restore(ctx context.Context, uid types.UID) (*v1.Pod, error) {
	have, err := k.reader.Pod(ctx, uid)
	if err != nil {
		return nil, err
	}
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid, Name: have.Name, Namespace: have.Namespace}}
	if s := have.Sandbox(); s != nil {
		p.Annotations = s.Annotations
	}
	for _, c := range have.Containers {
		if c.Running() {
			p.Spec.Containers = append(p.Spec.Containers, restoreContainer(c))
		}
		if grace, err := strconv.ParseInt(c.Annotations[runtime.GraceAnnotation], 10, 64); err == nil {
			p.Spec.TerminationGracePeriodSeconds = &grace
		}
		p.Namespace, p.Name = c.Labels[runtime.PodNamespaceLabel], c.Labels[runtime.PodNameLabel]
	}
	return p, nil
}

func restoreContainer(c *runtime.Container) v1.Container {
	out := v1.Container{Name: c.GetMetadata().GetName()}
	var hook v1.LifecycleHandler
	if text := c.Annotations[runtime.PreStopAnnotation]; text != "" && json.Unmarshal([]byte(text), &hook) == nil {
		out.Lifecycle = &v1.Lifecycle{PreStop: &hook}
	}
	return out
}
