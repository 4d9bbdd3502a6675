package kubelet

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/logs"
	"github.com/orlop/orlop/kubelet/runtime"
	"github.com/orlop/orlop/kubelet/spec"
	"github.com/orlop/orlop/kubelet/status"
)

// Pods are all pods of this node with their newest statuses. One that its source no longer has is told as one that is being
// deleted: a static pod has no object that could say so.
func (k *Kubelet) Pods() []*v1.Pod {
	pods := k.pods.list()
	for i, p := range pods {
		pods[i] = k.withStatus(p)
		if w := k.pods.find(p.UID); w != nil {
			pods[i] = w.withDeletion(pods[i])
		}
	}
	return pods
}

// Changed is closed once Pods may return something else than it does after this call.
func (k *Kubelet) Changed() <-chan struct{} { return k.changes.next() }

// bell wakes all who wait.
type bell struct {
	mu   sync.Mutex
	rung chan struct{} // nil while nobody waits
}

func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rung == nil {
		b.rung = make(chan struct{})
	}
	return b.rung
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rung != nil {
		close(b.rung)
		b.rung = nil
	}
}

// RunningPods are those that are kept, and so may be ended for the node's sake.
func (k *Kubelet) RunningPods() []*v1.Pod { return k.pods.running() }

// End ends a pod for a reason of the node's, with an event that tells it. grace is in seconds; nil is the pod's own.
func (k *Kubelet) End(p *v1.Pod, final status.Final, grace *int64) {
	w := k.pods.find(p.UID)
	if w == nil {
		return
	}
	k.cfg.Events.Event(p, v1.EventTypeWarning, final.Reason, final.Message)
	w.end(final, grace)
}

// Ending is true while a pod that was told to end still holds something of the node.
func (k *Kubelet) Ending(p *v1.Pod) bool {
	w := k.pods.find(p.UID)
	return w != nil && !w.isFree()
}

// PodByName is one of them; nil if there is none. Of two with one name it is the one that has not ended.
func (k *Kubelet) PodByName(namespace, name string) *v1.Pod {
	var found *v1.Pod
	for _, p := range k.pods.list() {
		if p.Namespace == namespace && p.Name == name && (found == nil || found.DeletionTimestamp != nil) {
			found = p
		}
	}
	if found == nil {
		return nil
	}
	return k.withStatus(found)
}

func (k *Kubelet) withStatus(p *v1.Pod) *v1.Pod {
	s, known := k.status.Get(p.UID)
	if !known {
		return p
	}
	out := *p
	out.Status = s
	return &out
}

// RunningContainers are those whose logs grow. It asks for no more than one list, since it is asked for often.
func (k *Kubelet) RunningContainers(ctx context.Context) ([]logs.Container, error) {
	running := &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}
	list, err := k.cfg.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: running})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var out []logs.Container
	for _, c := range list.Containers {
		if c.Labels[runtime.PodUIDLabel] == "" {
			continue
		}
		if path := k.logPath(c); path != "" {
			out = append(out, logs.Container{ID: c.Id, Path: path})
		}
	}
	return out, nil
}

// logPath is where this kubelet asked the runtime to write a container's log.
func (k *Kubelet) logPath(c *cri.Container) string {
	p := k.pods.find(types.UID(c.Labels[runtime.PodUIDLabel]))
	if p == nil {
		return ""
	}
	return filepath.Join(k.cfg.Spec.LogDir(p.pod()), spec.LogFile(c.GetMetadata().GetName(), c.GetMetadata().GetAttempt()))
}

// ReopenLog tells the runtime that a log was moved away.
func (k *Kubelet) ReopenLog(ctx context.Context, containerID string) error {
	_, err := k.cfg.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: containerID})
	return err
}
