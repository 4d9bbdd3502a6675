// Package plan decides what is to be done for a pod: it compares what its spec wants with what the runtime has. It is
// pure, so every decision can be seen in a table.
//
//	sandbox ──▶ init containers, one after the other ──▶ main containers, side by side
//	              sidecars among them: the next one waits only until the sidecar has started
package plan

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
	"github.com/orlop/orlop/kubelet/spec"
)

// Failure is why a running container must be ended.
type Failure struct {
	Message      string
	GraceSeconds *int64 // of the probe, instead of the pod's
}

// Input is what a decision is made from.
type Input struct {
	Pod  *v1.Pod
	Have *runtime.Pod
	// Failed tells of a running container whose liveness or startup probe has failed.
	Failed func(containerID string) (Failure, bool)
	// Started tells of a running container whether its startup probe, if it has one, has succeeded.
	Started func(c *v1.Container, s *runtime.Container) bool
	// BackOff tells for how long yet a container that ended at a time must wait for its restart; 0 for no longer.
	BackOff func(container string, endedAt time.Time) time.Duration
}

// Start is a container to be created and started.
type Start struct {
	Container *v1.Container
	Kind      pod.Kind
	Attempt   uint32
	Ended     time.Time // when its predecessor ended by itself; zero if none did
}

// Kill is a container to be ended.
type Kill struct {
	ID        string
	Container *v1.Container
	Failure
}

// Delay is a container whose restart must wait.
type Delay struct {
	Container string
	Left      time.Duration
}

// Plan is what to do, in the order of its fields.
type Plan struct {
	EndPod     bool   // end all containers and the sandbox: they are of no use any more, or the pod has done its work
	Done       bool   // nothing of the pod will ever run again
	NewSandbox bool   // after EndPod
	Attempt    uint32 // of the new sandbox
	Kill       []Kill
	Start      []Start // once there is a sandbox
	Delayed    []Delay
}

// Make decides.
func Make(in Input) Plan {
	if !usable(in.Pod, in.Have.Sandbox()) {
		return withoutSandbox(in)
	}
	d := &decision{Input: in, sandbox: in.Have.Sandbox().Id, past: Past(in.Pod, in.Have)}
	if d.restartAll() {
		return d.plan
	}
	d.ephemeral()
	if !d.init() {
		return d.plan
	}
	d.main()
	return d.plan
}

// usable is true for a sandbox in which containers can run.
func usable(p *v1.Pod, s *cri.PodSandboxStatus) bool {
	if s == nil || s.State != cri.PodSandboxState_SANDBOX_READY {
		return false
	}
	network := s.GetLinux().GetNamespaces().GetOptions().GetNetwork()
	if (network == cri.NamespaceMode_NODE) != p.Spec.HostNetwork {
		return false
	}
	return p.Spec.HostNetwork || s.GetNetwork().GetIp() != ""
}

// withoutSandbox asks for a sandbox if anything is left to run in it.
func withoutSandbox(in Input) Plan {
	plan := Plan{EndPod: len(in.Have.Sandboxes) > 0}
	if s := in.Have.Sandbox(); s != nil {
		plan.Attempt = s.GetMetadata().GetAttempt() + 1
	}
	if failedInit(in) {
		plan.Done = true
		return plan
	}
	for i := range in.Pod.Spec.Containers {
		c := &in.Pod.Spec.Containers[i]
		s := in.Have.Latest(c.Name)
		if ShouldRestart(in.Pod, c, s) || (s.Running() && RestartsAfter(in.Pod, c, killedCode)) {
			plan.NewSandbox = true
			return plan
		}
	}
	plan.Done = true
	return plan
}

// killedCode is with what a container ends that has lost its sandbox.
const killedCode = 137

// failedInit is true if the last thing that the pod did was to fail in an init container that may not be repeated.
func failedInit(in Input) bool {
	for i := range in.Pod.Spec.InitContainers {
		c := &in.Pod.Spec.InitContainers[i]
		s := in.Have.Latest(c.Name)
		if !pod.IsSidecar(c) && s != nil && s.Exited() && s.ExitCode != 0 && !ShouldRestart(in.Pod, c, s) {
			return true
		}
	}
	return false
}

// decision is one run of Make on a pod with a sandbox.
type decision struct {
	Input
	sandbox string
	past    map[string]bool // names of containers whose newest one belongs to the pod's past
	plan    Plan
}

// latest is the newest container of a name in the sandbox; those of an earlier sandbox, and of the time before all were
// restarted, decide nothing.
func (d *decision) latest(name string) *runtime.Container {
	if d.past[name] {
		return nil
	}
	for _, s := range d.Have.Containers {
		if s.GetMetadata().GetName() == name && s.SandboxID == d.sandbox {
			return s
		}
	}
	return nil
}

// ephemeral containers are started once, whatever becomes of them.
func (d *decision) ephemeral() {
	for c, kind := range pod.Containers(d.Pod) {
		if kind == pod.Ephemeral && d.Have.Latest(c.Name) == nil {
			d.plan.Start = append(d.plan.Start, Start{Container: c, Kind: kind})
		}
	}
}

// init sees to the init containers and sidecars, and is true if the main containers may run.
func (d *decision) init() bool {
	initialized := d.initialized()
	for i := range d.Pod.Spec.InitContainers {
		c := &d.Pod.Spec.InitContainers[i]
		if pod.IsSidecar(c) {
			if !d.sidecar(c) && !initialized {
				return false
			}
			continue
		}
		if !initialized && !d.initContainer(c) {
			return false
		}
	}
	return true
}

// initialized is true once a main container was started in this sandbox: init containers are then not run again.
func (d *decision) initialized() bool {
	for i := range d.Pod.Spec.Containers {
		if s := d.latest(d.Pod.Spec.Containers[i].Name); s != nil && s.State != cri.ContainerState_CONTAINER_CREATED {
			return true
		}
	}
	return false
}

// sidecar keeps a sidecar running and is true if it has started.
func (d *decision) sidecar(c *v1.Container) bool {
	s := d.latest(c.Name)
	if s == nil || !s.Running() {
		d.start(c, pod.Sidecar, s)
		return false
	}
	if d.unfit(c, pod.Sidecar, s) {
		return false
	}
	return d.Started(c, s)
}

// initContainer runs an init container to its end and is true if it has succeeded.
func (d *decision) initContainer(c *v1.Container) bool {
	s := d.latest(c.Name)
	switch {
	case s != nil && s.Running():
		return false
	case s != nil && s.Exited() && s.ExitCode == 0:
		return true
	case s == nil || ShouldRestart(d.Pod, c, s):
		d.start(c, pod.Init, s)
		return false
	}
	d.plan = Plan{EndPod: true, Done: true} // it failed for good, and the pod with it
	return false
}

// main starts main containers, and ends those that must not go on. When none is left that runs or will, the pod is done.
func (d *decision) main() {
	left := false
	for i := range d.Pod.Spec.Containers {
		c := &d.Pod.Spec.Containers[i]
		s := d.latest(c.Name)
		if s != nil && s.Running() {
			left = true
			d.unfit(c, pod.Main, s)
			continue
		}
		if s == nil && !d.past[c.Name] {
			s = d.Have.Latest(c.Name) // what ended in an earlier sandbox may have ended for good
		}
		if ShouldRestart(d.Pod, c, s) {
			left = true
			d.start(c, pod.Main, s)
		}
	}
	if !left {
		d.plan = Plan{EndPod: true, Done: true}
	}
}

// unfit ends a running container that must not go on, and starts it anew at once if its image was changed.
func (d *decision) unfit(c *v1.Container, kind pod.Kind, s *runtime.Container) bool {
	if hash := s.Annotations[runtime.HashAnnotation]; hash != "" && hash != spec.Hash(c) {
		d.plan.Kill = append(d.plan.Kill, Kill{ID: s.Id, Container: c, Failure: Failure{
			Message: fmt.Sprintf("Container %s definition changed, will be restarted", c.Name)}})
		d.plan.Start = append(d.plan.Start, Start{Container: c, Kind: kind, Attempt: d.attempt(c)})
		return true
	}
	if failure, failed := d.Failed(s.Id); failed {
		d.plan.Kill = append(d.plan.Kill, Kill{ID: s.Id, Container: c, Failure: failure})
		return true
	}
	return false
}

// start starts a container, unless it must wait after its last end.
func (d *decision) start(c *v1.Container, kind pod.Kind, last *runtime.Container) {
	start := Start{Container: c, Kind: kind, Attempt: d.attempt(c)}
	if d.past[c.Name] {
		last = d.Have.Latest(c.Name)
	}
	if last != nil && last.Exited() {
		start.Ended = time.Unix(0, last.FinishedAt)
		if left := d.BackOff(c.Name, start.Ended); left > 0 {
			d.plan.Delayed = append(d.plan.Delayed, Delay{c.Name, left})
			return
		}
	}
	d.plan.Start = append(d.plan.Start, start)
}

// attempt counts over all sandboxes of the pod. What the API server remembers counts too, since an old container may have
// been removed.
func (d *decision) attempt(c *v1.Container) uint32 {
	next := uint32(0)
	if s := d.Have.Latest(c.Name); s != nil {
		next = uint32(runtime.RestartCount(s)) + 1
	}
	if s := pod.ContainerStatus(&d.Pod.Status, c.Name); s != nil && (s.LastTerminationState.Terminated != nil || s.State.Terminated != nil) {
		known := uint32(s.RestartCount)
		if d.Have.Latest(c.Name) == nil {
			known++
		}
		next = max(next, known)
	}
	return next
}

// ShouldRestart is true if a container that does not run must be started: it never was, or its restart policy says so.
// Of the policies, the container's rules come first, then its own, then the pod's (KEP-5307).
func ShouldRestart(p *v1.Pod, c *v1.Container, s *runtime.Container) bool {
	if s == nil {
		return true
	}
	switch s.State {
	case cri.ContainerState_CONTAINER_RUNNING:
		return false
	case cri.ContainerState_CONTAINER_EXITED:
		return RestartsAfter(p, c, s.ExitCode)
	}
	return true // created, but never started; or lost by the runtime
}

// RestartsAfter is true if a container that ended with an exit code is started again.
func RestartsAfter(p *v1.Pod, c *v1.Container, code int32) bool {
	switch action(c, code) {
	case v1.ContainerRestartRuleActionRestart, v1.ContainerRestartRuleActionRestartAllContainers:
		return true
	}
	policy := v1.ContainerRestartPolicy(p.Spec.RestartPolicy)
	if c.RestartPolicy != nil {
		policy = *c.RestartPolicy
	}
	switch policy {
	case v1.ContainerRestartPolicyNever:
		return false
	case v1.ContainerRestartPolicyOnFailure:
		return code != 0
	}
	return !initSucceeded(p, c, code)
}

// initSucceeded: an init container of a pod that restarts always is still done once it has succeeded.
func initSucceeded(p *v1.Pod, c *v1.Container, code int32) bool {
	if code != 0 || pod.IsSidecar(c) {
		return false
	}
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == c.Name {
			return true
		}
	}
	return false
}

func matches(on *v1.ContainerRestartRuleOnExitCodes, code int32) bool {
	if on == nil {
		return false
	}
	in := false
	for _, value := range on.Values {
		in = in || value == code
	}
	return in == (on.Operator == v1.ContainerRestartRuleOnExitCodesOpIn)
}
