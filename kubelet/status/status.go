// Package status tells the API server how pods are: [Generate] describes a pod from what its spec wants and its runtime
// has, and is pure; [Manager] sends descriptions that changed.
package status

import (
	"cmp"
	"net"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/plan"
	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
)

// Input is what a pod's status is made from.
type Input struct {
	Pod         *v1.Pod
	Have        *runtime.Pod
	Old         v1.PodStatus // what was said last
	RuntimeName string       // of container IDs: NAME://ID
	HostIPs     []net.IP     // of the node; the main one first
	Now         metav1.Time
	// Reasons says why containers do not run, by name: CrashLoopBackOff, ErrImagePull, …
	Reasons map[string]v1.ContainerStateWaiting
	// Message is what a container that has ended left as its last words.
	Message func(c *runtime.Container) string
	// Ready sets Started and Ready of the containers in a status; it is the probes'.
	Ready func(p *v1.Pod, s *v1.PodStatus)
	// Resize tells of a resize that is under way or waits; nil if none does.
	Resize *v1.PodCondition
	// Final is what the pod has come to if something ended it other than its containers: an eviction, a deadline. It is told
	// once nothing of the pod runs: a controller that reads Failed may use at once what the pod had for itself.
	Final *Final
	// Ended is true once nothing of the pod runs or will run again.
	Ended bool

	past map[string]bool // containers that will be restarted with all others
}

// Final is an end that is forced on a pod. Its phase is Failed.
type Final struct {
	Reason, Message string
	Condition       *v1.PodCondition // DisruptionTarget, or nil
}

// Generate describes a pod.
func Generate(in Input) v1.PodStatus {
	if !in.Ended {
		in.past = plan.Past(in.Pod, in.Have)
	}
	if !in.Ended && in.Have.Running() {
		in.Final = nil
	}
	s := v1.PodStatus{
		ObservedGeneration: in.Pod.Generation,
		QOSClass:           pod.QoS(in.Pod),
		StartTime:          cmp.Or(in.Old.StartTime, &in.Now),
		Resize:             in.Old.Resize,
		NominatedNodeName:  in.Pod.Status.NominatedNodeName,
	}
	addIPs(in, &s)
	s.InitContainerStatuses = containers(in, initNames(in.Pod))
	s.ContainerStatuses = containers(in, mainNames(in.Pod))
	s.EphemeralContainerStatuses = containers(in, ephemeralNames(in.Pod))
	in.Ready(in.Pod, &s)
	s.Phase = phase(in, &s)
	keepTerminal(in, &s)
	s.Conditions = conditions(in, &s)
	return s
}

// keepTerminal: a phase that is terminal stays, and a phase that stays keeps its reason.
func keepTerminal(in Input, s *v1.PodStatus) {
	for _, known := range []v1.PodStatus{in.Old, in.Pod.Status} {
		if !pod.IsTerminal(s.Phase) && pod.IsTerminal(known.Phase) && !pod.IsStatic(in.Pod) {
			s.Phase = known.Phase
		}
	}
	if s.Phase == in.Old.Phase {
		s.Reason, s.Message = cmp.Or(in.Old.Reason, in.Pod.Status.Reason), cmp.Or(in.Old.Message, in.Pod.Status.Message)
	}
	if in.Final != nil {
		s.Phase, s.Reason, s.Message = v1.PodFailed, in.Final.Reason, in.Final.Message
	}
}

func addIPs(in Input, s *v1.PodStatus) {
	for _, ip := range in.HostIPs {
		s.HostIPs = append(s.HostIPs, v1.HostIP{IP: ip.String()})
	}
	if len(s.HostIPs) > 0 {
		s.HostIP = s.HostIPs[0].IP
	}
	ips := in.Have.IPs()
	switch {
	case in.Pod.Spec.HostNetwork && in.Have.Sandbox() != nil:
		ips = nil
		for _, ip := range in.HostIPs {
			ips = append(ips, ip.String())
		}
	case len(ips) == 0 && !in.Ended: // between two sandboxes the old address is of no use, but its loss would be noise
		s.PodIP, s.PodIPs = in.Old.PodIP, in.Old.PodIPs
		return
	}
	for _, ip := range ips {
		s.PodIPs = append(s.PodIPs, v1.PodIP{IP: ip})
	}
	if len(ips) > 0 {
		s.PodIP = ips[0]
	}
}

// phase sums up the containers, see the pod lifecycle of the Kubernetes documentation.
func phase(in Input, s *v1.PodStatus) v1.PodPhase {
	init := countInit(in, s)
	if init.failed {
		if in.Ended || !in.Have.Running() {
			return v1.PodFailed
		}
		return v1.PodPending
	}
	n := countMain(in, s)
	switch {
	case init.pending || (init.sidecarPending && !n.anyStarted), n.waiting > 0, init.sidecarWaiting && !n.anyStarted:
		return v1.PodPending
	case n.running > 0:
		return v1.PodRunning
	case n.stopped == 0:
		return v1.PodPending
	case n.restarting > 0 && !in.Ended:
		return v1.PodRunning
	case !in.Ended && in.Have.Running(): // sidecars end last, and the pod ends with them
		return v1.PodRunning
	case n.stopped == n.succeeded:
		return v1.PodSucceeded
	}
	return v1.PodFailed
}

type initCount struct {
	failed         bool // for good
	pending        bool
	sidecarPending bool // runs, but has not started
	sidecarWaiting bool
}

func countInit(in Input, s *v1.PodStatus) initCount {
	var n initCount
	for i := range in.Pod.Spec.InitContainers {
		c := &in.Pod.Spec.InitContainers[i]
		cs := pod.ContainerStatus(s, c.Name)
		end := cs.State.Terminated
		if end == nil && cs.State.Waiting != nil {
			end = cs.LastTerminationState.Terminated
		}
		switch {
		case in.past[c.Name]:
			n.pending = true
		case pod.IsSidecar(c):
			n.sidecarPending = n.sidecarPending || (cs.State.Running != nil && (cs.Started == nil || !*cs.Started))
			n.sidecarWaiting = n.sidecarWaiting || (cs.State.Waiting != nil && end == nil)
		case cs.State.Terminated != nil && end.ExitCode == 0:
		case end != nil && end.ExitCode != 0 && !restarts(in.Pod, c, end.ExitCode):
			n.failed = true
		default:
			n.pending = true
		}
	}
	return n
}

type mainCount struct {
	running, waiting, stopped, succeeded, restarting int
	anyStarted                                       bool
}

func countMain(in Input, s *v1.PodStatus) mainCount {
	var n mainCount
	for i := range in.Pod.Spec.Containers {
		c := &in.Pod.Spec.Containers[i]
		cs := pod.ContainerStatus(s, c.Name)
		end := cs.State.Terminated
		if end == nil && cs.State.Waiting != nil {
			end = cs.LastTerminationState.Terminated
		}
		switch {
		case cs.State.Running != nil:
			n.running++
			n.anyStarted = true
		case end == nil:
			n.waiting++
		default:
			n.anyStarted = true
			n.stopped++
			if in.past[c.Name] || restarts(in.Pod, c, end.ExitCode) {
				n.restarting++
			}
			if cs.State.Terminated != nil && end.ExitCode == 0 {
				n.succeeded++
			}
		}
	}
	return n
}

// Waiting is a container state with a reason.
func Waiting(reason, message string) v1.ContainerStateWaiting {
	return v1.ContainerStateWaiting{Reason: reason, Message: message}
}

func initNames(p *v1.Pod) []*v1.Container      { return kinds(p, pod.Init, pod.Sidecar) }
func mainNames(p *v1.Pod) []*v1.Container      { return kinds(p, pod.Main) }
func ephemeralNames(p *v1.Pod) []*v1.Container { return kinds(p, pod.Ephemeral) }

func kinds(p *v1.Pod, kinds ...pod.Kind) []*v1.Container {
	var out []*v1.Container
	for c, kind := range pod.Containers(p) {
		if slices.Contains(kinds, kind) {
			out = append(out, c)
		}
	}
	return out
}

func networkReady(p *v1.Pod, have *runtime.Pod) bool {
	s := have.Sandbox()
	return s != nil && s.State == cri.PodSandboxState_SANDBOX_READY && (p.Spec.HostNetwork || len(have.IPs()) > 0)
}
