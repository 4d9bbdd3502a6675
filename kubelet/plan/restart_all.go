package plan

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
)

// A container may ask, by the exit code that it ends with, that all containers of its pod start anew, init containers first
// (KEP-5532). The moment of its end parts the pod's past from its present: what was made before belongs to the past, is ended if
// it runs, and counts no more. So nothing must be remembered of it but what the runtime has.

// Past are the names of the containers whose newest one belongs to the pod's past.
func Past(p *v1.Pod, have *runtime.Pod) map[string]bool {
	began := begin(p, have)
	if began == 0 {
		return nil
	}
	past := map[string]bool{}
	for c, kind := range pod.Containers(p) {
		if s := have.Latest(c.Name); s != nil && kind != pod.Ephemeral && s.CreatedAt <= began {
			past[c.Name] = true
		}
	}
	return past
}

// begin is when the pod's present began, in nanoseconds since 1970; 0 if it was with the pod itself.
func begin(p *v1.Pod, have *runtime.Pod) int64 {
	if !RestartsAll(p) {
		return 0
	}
	began := int64(0)
	for c := range pod.Containers(p) {
		for _, s := range have.Containers {
			if s.GetMetadata().GetName() == c.Name && s.Exited() && action(c, s.ExitCode) == v1.ContainerRestartRuleActionRestartAllContainers {
				began = max(began, s.FinishedAt)
			}
		}
	}
	return began
}

// RestartsAll is true for a pod of which a container may ask for the restart of all.
func RestartsAll(p *v1.Pod) bool {
	for c := range pod.Containers(p) {
		if slices.ContainsFunc(c.RestartPolicyRules, func(r v1.ContainerRestartRule) bool {
			return r.Action == v1.ContainerRestartRuleActionRestartAllContainers
		}) {
			return true
		}
	}
	return false
}

// action is that of the first rule for an exit code; "" if none is for it.
func action(c *v1.Container, code int32) v1.ContainerRestartRuleAction {
	for _, rule := range c.RestartPolicyRules {
		if matches(rule.ExitCodes, code) {
			return rule.Action
		}
	}
	return ""
}

// restartAll ends what runs of the pod's past, main containers first, without grace as kubelet does: their work is of no use any
// more. It is true if there is any.
func (d *decision) restartAll() bool {
	for _, kinds := range [][]pod.Kind{{pod.Main}, {pod.Sidecar, pod.Init}} {
		for c, kind := range pod.Containers(d.Pod) {
			if s := d.Have.Latest(c.Name); slices.Contains(kinds, kind) && d.past[c.Name] && s.State == cri.ContainerState_CONTAINER_RUNNING {
				d.plan.Kill = append(d.plan.Kill, Kill{ID: s.Id, Container: c, Failure: Failure{
					Message: fmt.Sprintf("Container %s will be restarted with all others of its pod", c.Name), GraceSeconds: new(int64(0)),
				}})
			}
		}
	}
	return len(d.plan.Kill) > 0
}
