package kubelet

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/resource"
	"github.com/orlop/orlop/kubelet/runtime"
)

// change is a running container whose resources are not what its spec says.
type change struct {
	container *v1.Container
	id        string
	want, got *cri.LinuxContainerResources
}

// resize brings the resources of running containers to what they were allotted (KEP-1287), or ends a container that must start
// anew to get them. It is true if anything changed.
func (w *worker) resize(ctx context.Context, p *v1.Pod, have *runtime.Pod) (changed bool, err error) {
	changes := w.changes(p, have)
	if len(changes) == 0 {
		if w.endResize(v1.PodResizeInProgress) {
			w.k.cfg.Events.Event(p, v1.EventTypeNormal, "ResizeCompleted", "Pod resize completed")
			w.poke() // the status tells that it is under way
		}
		return false, nil
	}
	for _, c := range changes {
		if needsRestart(c) {
			message := fmt.Sprintf("Container %s resize requires restart", c.container.Name)
			k := killing{pod: p, container: c.container, id: c.id, message: message, grace: pod.GracePeriodSeconds(p)}
			if err := w.killContainer(ctx, k); err != nil {
				return false, err
			}
			changed = true
		}
	}
	if changed {
		return true, nil
	}
	if err := w.applyChanges(ctx, p, changes); err != nil {
		if w.tellResize(v1.PodResizeInProgress, v1.PodReasonError, err.Error()) {
			w.k.cfg.Events.Eventf(p, v1.EventTypeWarning, "ResizeError", "Pod resize error: %v", err)
		}
		return false, nil
	}
	return true, nil
}

// changes are found by what the runtime says that containers have. What was tried once is not tried again until the spec
// changes, since a runtime may round.
func (w *worker) changes(p *v1.Pod, have *runtime.Pod) []change {
	var out []change
	for c, kind := range pod.Containers(p) {
		s := have.Latest(c.Name)
		if kind == pod.Ephemeral || s == nil || !s.Running() || s.GetResources().GetLinux() == nil {
			continue
		}
		want, got := resource.Container(p, c, w.k.cfg.Spec.Node), s.GetResources().GetLinux()
		if same(want, got) || w.tried[s.Id] == key(want) {
			continue
		}
		out = append(out, change{c, s.Id, want, got})
	}
	return out
}

func same(want, got *cri.LinuxContainerResources) bool {
	return want.CpuShares == got.CpuShares && max(want.CpuQuota, 0) == max(got.CpuQuota, 0) &&
		max(want.MemoryLimitInBytes, 0) == max(got.MemoryLimitInBytes, 0)
}

func key(r *cri.LinuxContainerResources) string {
	return fmt.Sprint(r.CpuShares, r.CpuQuota, r.MemoryLimitInBytes)
}

// needsRestart is true if the container says so of a resource that changes.
func needsRestart(c change) bool {
	for _, policy := range c.container.ResizePolicy {
		if policy.RestartPolicy != v1.RestartContainer {
			continue
		}
		cpu := c.want.CpuShares != c.got.CpuShares || max(c.want.CpuQuota, 0) != max(c.got.CpuQuota, 0)
		memory := max(c.want.MemoryLimitInBytes, 0) != max(c.got.MemoryLimitInBytes, 0)
		if (policy.ResourceName == v1.ResourceCPU && cpu) || (policy.ResourceName == v1.ResourceMemory && memory) {
			return true
		}
	}
	return false
}

// applyChanges gives the pod more before its containers, and less after them.
func (w *worker) applyChanges(ctx context.Context, p *v1.Pod, changes []change) error {
	give := resource.OfPod(p, w.k.cfg.Spec.Node)
	shrinks := false
	for _, c := range changes {
		shrinks = shrinks || (c.want.MemoryLimitInBytes > 0 && c.want.MemoryLimitInBytes < c.got.MemoryLimitInBytes)
	}
	if !shrinks {
		if err := w.k.cfg.Cgroups.Ensure(p, give); err != nil {
			return err
		}
	}
	for _, c := range changes {
		if err := w.checkShrink(ctx, c); err != nil {
			return err
		}
		w.tried[c.id] = key(c.want)
		if _, err := w.k.cfg.Runtime.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: c.want}); err != nil {
			return fmt.Errorf("container %s: %w", c.container.Name, err)
		}
	}
	if shrinks {
		return w.k.cfg.Cgroups.Ensure(p, give)
	}
	return nil
}

// checkShrink refuses a memory limit below what the container uses now. It may use more a moment later: the kernel then decides.
func (w *worker) checkShrink(ctx context.Context, c change) error {
	if c.want.MemoryLimitInBytes <= 0 || (c.got.MemoryLimitInBytes > 0 && c.want.MemoryLimitInBytes >= c.got.MemoryLimitInBytes) {
		return nil
	}
	reply, err := w.k.cfg.Runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: c.id})
	if err != nil {
		return fmt.Errorf("container %s: stats: %w", c.container.Name, err)
	}
	if used := reply.GetStats().GetMemory().GetWorkingSetBytes().GetValue(); used > uint64(c.want.MemoryLimitInBytes) {
		return fmt.Errorf("container %s: attempting to set memory limit (%d) below current usage (%d)", c.container.Name, c.want.MemoryLimitInBytes, used)
	}
	return nil
}
