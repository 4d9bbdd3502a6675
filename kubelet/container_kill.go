package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/lifecycle"
	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
)

// leastGrace is what a container gets to end at the very least; kubelet gives as much.
const leastGrace = 2 * time.Second

// killing is one container to be ended.
type killing struct {
	pod       *v1.Pod
	container *v1.Container
	id        string
	message   string // of the event; "" says that it is stopped
	grace     int64  // seconds
}

// killContainer runs the preStop hook, and stops the container with what is left of its grace.
func (w *worker) killContainer(ctx context.Context, k killing) error {
	message := k.message
	if message == "" {
		message = "Stopping container " + k.container.Name
	}
	w.k.containerEvent(k.pod, k.container, v1.EventTypeNormal, "Killing", message)
	end := time.Now().Add(time.Duration(k.grace) * time.Second)
	if k.container.Lifecycle != nil && k.container.Lifecycle.PreStop != nil && k.grace > 0 {
		w.preStop(ctx, k, end)
	}
	return w.stopContainer(ctx, k.id, time.Until(end))
}

// preStop runs the hook for as long as the grace lasts. That it fails ends nothing but the hook.
func (w *worker) preStop(ctx context.Context, k killing, end time.Time) {
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	message, err := w.k.hooks.Run(ctx, lifecycle.Hook{
		Pod: k.pod, Container: k.container, ContainerID: k.id, Handler: k.container.Lifecycle.PreStop, PodIP: w.podIP(k.pod),
	})
	if err != nil {
		w.k.containerEvent(k.pod, k.container, v1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: "+message)
	}
}

// podIP is the address that was told last. A static pod's manifest has none, nor has what is known of a pod that no source has.
func (w *worker) podIP(p *v1.Pod) string {
	if s, known := w.k.status.Get(w.uid); known {
		return s.PodIP
	}
	return p.Status.PodIP
}

func (w *worker) stopContainer(ctx context.Context, id string, grace time.Duration) error {
	grace = max(grace, leastGrace).Round(time.Second)
	// The runtime needs a moment beside the grace; a runtime that hangs must not hold the worker for ever.
	ctx, cancel := context.WithTimeout(ctx, grace+time.Minute)
	defer cancel()
	_, err := w.k.cfg.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: int64(grace.Seconds())})
	if err != nil && status.Code(err) != codes.NotFound {
		return fmt.Errorf("stop container %s: %w", id, err)
	}
	return nil
}

// killPod ends all containers side by side, sidecars after the main containers and in the reverse of their order
// (KEP-753), and then the sandboxes. grace replaces the pod's.
func (w *worker) killPod(ctx context.Context, p *v1.Pod, have *runtime.Pod, grace *int64) error {
	seconds := pod.GracePeriodSeconds(p)
	if grace != nil {
		seconds = *grace
	}
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	for _, group := range endOrder(p, have) {
		if err := w.killGroup(ctx, p, group, end); err != nil {
			w.k.cfg.Events.Eventf(p, v1.EventTypeWarning, "FailedKillPod", "error killing pod: %v", err)
			return err
		}
	}
	for _, s := range have.Sandboxes {
		if _, err := w.k.cfg.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil && status.Code(err) != codes.NotFound {
			w.k.cfg.Events.Eventf(p, v1.EventTypeWarning, "FailedKillPod", "error killing pod: %v", err)
			return fmt.Errorf("stop sandbox %s: %w", s.Id, err)
		}
	}
	return nil
}

// victim is a running container and what its pod says of it.
type victim struct {
	container *v1.Container
	id        string
}

// endOrder groups the running containers: those of a group end together, one group after the other.
func endOrder(p *v1.Pod, have *runtime.Pod) [][]victim {
	var main []victim
	sidecars := map[string][]victim{}
	for _, c := range have.Containers {
		if !c.Running() {
			continue
		}
		name := c.GetMetadata().GetName()
		container, kind := pod.Container(p, name)
		if container == nil {
			container = &v1.Container{Name: name}
		}
		v := victim{container, c.Id}
		if kind == pod.Sidecar {
			sidecars[name] = append(sidecars[name], v)
		} else {
			main = append(main, v)
		}
	}
	groups := [][]victim{main}
	for _, c := range slices.Backward(p.Spec.InitContainers) {
		groups = append(groups, sidecars[c.Name])
	}
	return groups
}

func (w *worker) killGroup(ctx context.Context, p *v1.Pod, group []victim, end time.Time) error {
	var all sync.WaitGroup
	errs := make([]error, len(group))
	for i, v := range group {
		all.Go(func() {
			left := max(0, int64(time.Until(end).Round(time.Second).Seconds()))
			errs[i] = w.killContainer(ctx, killing{pod: p, container: v.container, id: v.id, grace: left})
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
