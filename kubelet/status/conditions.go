package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/plan"
	"github.com/orlop/orlop/kubelet/pod"
)

// ownConditions are set by the kubelet; all others belong to whoever set them, and stay. DisruptionTarget is shared (KEP-3329):
// the scheduler and controllers set it too, and the last one counts.
var ownConditions = []v1.PodConditionType{
	v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady, v1.PodScheduled,
	v1.PodResizePending, v1.PodResizeInProgress, v1.AllContainersRestarting,
}

// IsOwn is true for a condition that the kubelet sets.
func IsOwn(kind v1.PodConditionType) bool { return slices.Contains(ownConditions, kind) }

func conditions(in Input, s *v1.PodStatus) []v1.PodCondition {
	var out []v1.PodCondition
	for _, c := range in.Pod.Status.Conditions {
		if !IsOwn(c.Type) && c.Type != v1.DisruptionTarget {
			out = append(out, c)
		}
	}
	if c := disruption(in, s); c != nil {
		out = append(out, *c)
	}
	if in.Resize != nil {
		c := *in.Resize
		if old := pod.Condition(&in.Old, c.Type); old != nil && old.Status == c.Status && !old.LastTransitionTime.IsZero() {
			c.LastTransitionTime = old.LastTransitionTime
		}
		out = append(out, c)
	}
	containersReady := containersReady(in.Pod, s)
	ready := containersReady
	if ready.Status == v1.ConditionTrue {
		ready = gates(in.Pod, out)
	}
	ready.Type = v1.PodReady
	own := []v1.PodCondition{
		yesNo(v1.PodReadyToStartContainers, networkReady(in.Pod, in.Have)),
		initialized(in.Pod, s), ready, containersReady,
		yesNo(v1.PodScheduled, true),
	}
	if plan.RestartsAll(in.Pod) {
		own = append(own, restarting(in))
	}
	for i := range own {
		own[i].ObservedGeneration = in.Pod.Generation
		own[i].LastTransitionTime = in.Now
		if old := pod.Condition(&in.Old, own[i].Type); old != nil && old.Status == own[i].Status && !old.LastTransitionTime.IsZero() {
			own[i].LastTransitionTime = old.LastTransitionTime
		}
	}
	return append(out, own...)
}

// disruption is the condition of what ends the pod from outside. A static pod that runs is a new run of its manifest: what
// ended the last one, a shutdown of the machine, is over.
func disruption(in Input, s *v1.PodStatus) *v1.PodCondition {
	if in.Final != nil && in.Final.Condition != nil {
		return in.Final.Condition
	}
	if pod.IsStatic(in.Pod) && !pod.IsTerminal(s.Phase) {
		return nil
	}
	return cmp.Or(pod.Condition(&in.Old, v1.DisruptionTarget), pod.Condition(&in.Pod.Status, v1.DisruptionTarget))
}

// restarting tells whether all containers are being restarted (KEP-5532).
func restarting(in Input) v1.PodCondition {
	if len(in.past) == 0 {
		return yesNo(v1.AllContainersRestarting, false)
	}
	return v1.PodCondition{
		Type: v1.AllContainersRestarting, Status: v1.ConditionTrue, Reason: "RestartAllContainersStarted", Message: "container exited with restart policy rule",
	}
}

func yesNo(kind v1.PodConditionType, yes bool) v1.PodCondition {
	if yes {
		return v1.PodCondition{Type: kind, Status: v1.ConditionTrue}
	}
	return v1.PodCondition{Type: kind, Status: v1.ConditionFalse}
}

func no(kind v1.PodConditionType, reason, message string) v1.PodCondition {
	return v1.PodCondition{Type: kind, Status: v1.ConditionFalse, Reason: reason, Message: message}
}

func containersReady(p *v1.Pod, s *v1.PodStatus) v1.PodCondition {
	switch s.Phase {
	case v1.PodSucceeded:
		return no(v1.ContainersReady, "PodCompleted", "")
	case v1.PodFailed:
		return no(v1.ContainersReady, "PodFailed", "")
	}
	var unready []string
	for c, kind := range pod.Containers(p) {
		if (kind == pod.Sidecar || kind == pod.Main) && !pod.ContainerStatus(s, c.Name).Ready {
			unready = append(unready, c.Name)
		}
	}
	if len(unready) > 0 {
		return no(v1.ContainersReady, "ContainersNotReady", fmt.Sprintf("containers with unready status: %s", unready))
	}
	return yesNo(v1.ContainersReady, true)
}

// gates: a pod is ready only if all conditions that its spec names are true (KEP-580).
func gates(p *v1.Pod, others []v1.PodCondition) v1.PodCondition {
	var problems []string
	for _, gate := range p.Spec.ReadinessGates {
		i := slices.IndexFunc(others, func(c v1.PodCondition) bool { return c.Type == gate.ConditionType })
		if i < 0 {
			problems = append(problems, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		} else if others[i].Status != v1.ConditionTrue {
			problems = append(problems, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, others[i].Status))
		}
	}
	if len(problems) > 0 {
		return no(v1.PodReady, "ReadinessGatesNotReady", strings.Join(problems, ", "))
	}
	return yesNo(v1.PodReady, true)
}

func initialized(p *v1.Pod, s *v1.PodStatus) v1.PodCondition {
	if s.Phase == v1.PodSucceeded {
		c := yesNo(v1.PodInitialized, true)
		c.Reason = "PodCompleted"
		return c
	}
	for i := range p.Spec.Containers {
		cs := pod.ContainerStatus(s, p.Spec.Containers[i].Name)
		if cs.State.Running != nil || cs.State.Terminated != nil || cs.LastTerminationState.Terminated != nil {
			return yesNo(v1.PodInitialized, true) // main containers run after the others only
		}
	}
	var incomplete []string
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		cs := pod.ContainerStatus(s, c.Name)
		done := cs.State.Terminated != nil && cs.State.Terminated.ExitCode == 0
		if pod.IsSidecar(c) {
			done = cs.Started != nil && *cs.Started
		}
		if !done {
			incomplete = append(incomplete, c.Name)
		}
	}
	if len(incomplete) > 0 {
		return no(v1.PodInitialized, "ContainersNotInitialized", fmt.Sprintf("containers with incomplete status: %s", incomplete))
	}
	return yesNo(v1.PodInitialized, true)
}
