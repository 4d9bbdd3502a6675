package status

import (
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/plan"
	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
	"github.com/orlop/orlop/kubelet/spec"
)

func restarts(p *v1.Pod, c *v1.Container, code int32) bool { return plan.RestartsAfter(p, c, code) }

// lostCode is the exit code of a container of which nothing is known but that it ran; kubelet's is the same.
const lostCode = 137

// containers describes containers of one kind, in the spec's order.
func containers(in Input, list []*v1.Container) []v1.ContainerStatus {
	var out []v1.ContainerStatus
	for _, c := range list {
		old := pod.ContainerStatus(&in.Old, c.Name)
		latest := in.Have.Latest(c.Name)
		var s v1.ContainerStatus
		if latest == nil {
			s = unseen(in, c, old)
		} else {
			s = seen(in, c, latest)
			keepMessage(&s, old)
			if previous := in.Have.Previous(c.Name); previous != nil && previous.Exited() {
				s.LastTerminationState.Terminated = in.terminated(previous)
			} else if old != nil { // the runtime no longer has it
				s.LastTerminationState = lastOf(old, s.ContainerID)
			}
		}
		s.VolumeMounts = volumeMounts(c)
		waits(in, c, latest, &s)
		out = append(out, s)
	}
	return out
}

// keepMessage: the last words of a container are gone with the pod's files, but not from its status.
func keepMessage(s, old *v1.ContainerStatus) {
	if old == nil || s.State.Terminated == nil || s.State.Terminated.Message != "" {
		return
	}
	for _, said := range []*v1.ContainerStateTerminated{old.State.Terminated, old.LastTerminationState.Terminated} {
		if said != nil && said.ContainerID == s.ContainerID {
			s.State.Terminated.Message = said.Message
		}
	}
}

// lastOf is how the container before the one with an ID ended, as far as an old status tells.
func lastOf(old *v1.ContainerStatus, id string) v1.ContainerState {
	if old.ContainerID != id && old.State.Terminated != nil {
		return old.State
	}
	return old.LastTerminationState
}

// unseen describes a container that the runtime does not have: it was not made yet, or it was and is gone.
func unseen(in Input, c *v1.Container, old *v1.ContainerStatus) v1.ContainerStatus {
	s := v1.ContainerStatus{Name: c.Name, Image: c.Image, State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ContainerCreating"}}}
	if len(in.Pod.Spec.InitContainers) > 0 {
		s.State.Waiting.Reason = "PodInitializing"
	}
	if old == nil {
		return assumeDone(in, c, s)
	}
	if old.State.Terminated != nil {
		return *old
	}
	s.RestartCount, s.LastTerminationState = old.RestartCount, old.LastTerminationState
	if old.State.Running != nil && old.LastTerminationState.Terminated == nil {
		s.LastTerminationState.Terminated = &v1.ContainerStateTerminated{
			Reason: "ContainerStatusUnknown", ExitCode: lostCode,
			Message: "The container could not be located when the pod was deleted.  The container used to be Running",
		}
		if in.Pod.DeletionTimestamp == nil {
			s.RestartCount++
		}
	}
	return assumeDone(in, c, s)
}

// assumeDone: an init container that is gone has succeeded if a main container is there.
func assumeDone(in Input, c *v1.Container, s v1.ContainerStatus) v1.ContainerStatus {
	_, kind := pod.Container(in.Pod, c.Name)
	if kind != pod.Init || s.State.Waiting == nil {
		return s
	}
	for i := range in.Pod.Spec.Containers {
		if in.Have.Latest(in.Pod.Spec.Containers[i].Name) != nil {
			s.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
				Reason: "Completed", Message: "The runtime no longer has this container; main containers were started after it, so it succeeded",
			}}
			break
		}
	}
	return s
}

func seen(in Input, c *v1.Container, have *runtime.Container) v1.ContainerStatus {
	s := v1.ContainerStatus{
		Name:               c.Name,
		RestartCount:       runtime.RestartCount(have),
		Image:              have.GetImage().GetImage(),
		ImageID:            have.ImageRef,
		ContainerID:        in.RuntimeName + "://" + have.Id,
		AllocatedResources: c.Resources.Requests,
		Resources:          actual(c, have),
		User:               user(have.GetUser().GetLinux()),
		StopSignal:         stopSignal(have.StopSignal),
	}
	if image := have.GetImage().GetUserSpecifiedImage(); image != "" {
		s.Image = image
	}
	switch have.State {
	case cri.ContainerState_CONTAINER_RUNNING:
		s.State.Running = &v1.ContainerStateRunning{StartedAt: when(have.StartedAt)}
	case cri.ContainerState_CONTAINER_EXITED:
		s.State.Terminated = in.terminated(have)
	case cri.ContainerState_CONTAINER_UNKNOWN:
		s.State.Terminated = &v1.ContainerStateTerminated{
			Reason: "ContainerStatusUnknown", Message: "The runtime does not know how the container ended", ExitCode: lostCode, ContainerID: s.ContainerID,
		}
	default:
		s.State.Waiting = &v1.ContainerStateWaiting{Reason: "ContainerCreating"}
	}
	return s
}

func (in Input) terminated(c *runtime.Container) *v1.ContainerStateTerminated {
	return &v1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: c.Reason, Message: in.Message(c),
		StartedAt: when(c.StartedAt), FinishedAt: when(c.FinishedAt), ContainerID: in.RuntimeName + "://" + c.Id,
	}
}

func when(nanoseconds int64) metav1.Time {
	if nanoseconds == 0 {
		return metav1.Time{}
	}
	return metav1.NewTime(time.Unix(0, nanoseconds).Truncate(time.Second)) // as precise as the API writes it
}

// waits turns the state of a container that will be started, but can't be now, into a waiting one with the reason.
func waits(in Input, c *v1.Container, latest *runtime.Container, s *v1.ContainerStatus) {
	reason, ok := in.Reasons[c.Name]
	if in.past[c.Name] && !ok {
		reason, ok = Waiting("RestartingAllContainers", "All containers of the pod are being restarted"), true
	}
	_, kind := pod.Container(in.Pod, c.Name)
	again := in.past[c.Name] || plan.ShouldRestart(in.Pod, c, latest)
	if !ok || in.Ended || s.State.Running != nil || (kind == pod.Ephemeral && latest != nil) || !again {
		return
	}
	if s.State.Terminated != nil {
		s.LastTerminationState = s.State
	}
	s.State = v1.ContainerState{Waiting: &reason}
}

// actual is what a running container has; the spec says what the runtime does not tell (KEP-1287).
func actual(c *v1.Container, have *runtime.Container) *v1.ResourceRequirements {
	r := c.Resources.DeepCopy()
	linux := have.GetResources().GetLinux()
	if linux == nil || !have.Running() {
		return r
	}
	set(r.Limits, v1.ResourceCPU, milliOfQuota(linux), resource.DecimalSI)
	if linux.MemoryLimitInBytes > 0 {
		set(r.Limits, v1.ResourceMemory, linux.MemoryLimitInBytes*1000, resource.BinarySI)
	}
	return r
}

// set changes a quantity only if it differs, so that one keeps the form that it was written in.
func set(list v1.ResourceList, name v1.ResourceName, milli int64, format resource.Format) {
	if q, has := list[name]; has && milli > 0 && q.MilliValue() != milli {
		if milli%1000 == 0 {
			list[name] = *resource.NewQuantity(milli/1000, format)
		} else {
			list[name] = *resource.NewMilliQuantity(milli, format)
		}
	}
}

func milliOfQuota(r *cri.LinuxContainerResources) int64 {
	if r.CpuQuota <= 0 || r.CpuPeriod <= 0 {
		return 0
	}
	return r.CpuQuota * 1000 / r.CpuPeriod
}

func user(u *cri.LinuxContainerUser) *v1.ContainerUser {
	if u == nil {
		return nil
	}
	return &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: u.Uid, GID: u.Gid, SupplementalGroups: slices.Clone(u.SupplementalGroups)}}
}

func stopSignal(s cri.Signal) *v1.Signal {
	if s == cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		return nil
	}
	name := spec.SignalName(s)
	return &name
}

func volumeMounts(c *v1.Container) []v1.VolumeMountStatus {
	var out []v1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		s := v1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := v1.RecursiveReadOnlyDisabled
			if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != v1.RecursiveReadOnlyDisabled {
				mode = v1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		out = append(out, s)
	}
	return out
}
