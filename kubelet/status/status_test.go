package status

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
)

var now = metav1.NewTime(time.Unix(1_800_000_000, 0))

// podOf makes a pod of names: "a" is a main container, "i:a" an init container, "s:a" a sidecar.
func podOf(policy v1.RestartPolicy, names string) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: policy}}
	p.UID, p.Name, p.Namespace = "u", "p", "n"
	always := v1.ContainerRestartPolicyAlways
	for _, name := range strings.Fields(names) {
		kind, rest, special := strings.Cut(name, ":")
		switch {
		case special && kind == "i":
			p.Spec.InitContainers = append(p.Spec.InitContainers, v1.Container{Name: rest, Image: "x"})
		case special && kind == "s":
			p.Spec.InitContainers = append(p.Spec.InitContainers, v1.Container{Name: rest, Image: "x", RestartPolicy: &always})
		default:
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: name, Image: "x"})
		}
	}
	return p
}

// haveOf reads words "NAME=STATE": running, created, or an exit code; the newest of a name first.
func haveOf(words string) *runtime.Pod {
	have := &runtime.Pod{UID: "u", Sandboxes: []*cri.PodSandboxStatus{{Id: "s", Network: &cri.PodSandboxNetworkStatus{Ip: "10.0.0.9"}}}}
	attempts := map[string]uint32{}
	fields := strings.Fields(words)
	for _, word := range fields {
		name, _, _ := strings.Cut(word, "=")
		attempts[name]++
	}
	for _, word := range fields {
		name, state, _ := strings.Cut(word, "=")
		attempts[name]--
		c := &runtime.Container{SandboxID: "s", ContainerStatus: &cri.ContainerStatus{
			Id: fmt.Sprintf("%s-%d", name, attempts[name]), Metadata: &cri.ContainerMetadata{Name: name, Attempt: attempts[name]},
			StartedAt: now.UnixNano(), Image: &cri.ImageSpec{Image: "sha256:1", UserSpecifiedImage: "x"}, ImageRef: "x@sha256:2",
		}}
		switch state {
		case "running":
			c.State = cri.ContainerState_CONTAINER_RUNNING
		case "created":
			c.State = cri.ContainerState_CONTAINER_CREATED
		default:
			c.State = cri.ContainerState_CONTAINER_EXITED
			_, _ = fmt.Sscan(state, &c.ExitCode)
			c.Reason, c.FinishedAt = "Error", now.UnixNano()
		}
		have.Containers = append(have.Containers, c)
	}
	return have
}

// allReady is the word of probes that are content.
func allReady(_ *v1.Pod, s *v1.PodStatus) {
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for i := range list {
			running := list[i].State.Running != nil
			list[i].Started, list[i].Ready = &running, running
		}
	}
}

func input(p *v1.Pod, words string) Input {
	return Input{
		Pod: p, Have: haveOf(words), RuntimeName: "test", Now: now, Ready: allReady,
		Message: func(*runtime.Container) string { return "last words" },
	}
}

func TestPhase(t *testing.T) {
	const always, onFailure, never = v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever
	for _, tt := range []struct {
		policy v1.RestartPolicy
		pod    string
		have   string
		ended  bool // nothing runs or will run again
		want   v1.PodPhase
	}{
		{always, "a b", "", false, v1.PodPending},
		{always, "a b", "a=running", false, v1.PodPending},
		{always, "a b", "a=running b=created", false, v1.PodPending},
		{always, "a b", "a=running b=running", false, v1.PodRunning},
		{always, "a b", "a=running b=1", false, v1.PodRunning},
		{always, "a", "a=1", false, v1.PodRunning},
		{always, "a", "a=0", false, v1.PodRunning},
		{always, "a", "a=1", true, v1.PodFailed},
		{always, "a", "a=0", true, v1.PodSucceeded},
		{onFailure, "a", "a=0", true, v1.PodSucceeded},
		{onFailure, "a", "a=1", false, v1.PodRunning},
		{onFailure, "a b", "a=0 b=running", false, v1.PodRunning},
		{never, "a", "a=0", true, v1.PodSucceeded},
		{never, "a", "a=7", true, v1.PodFailed},
		{never, "a b", "a=0 b=7", true, v1.PodFailed},
		{never, "a b", "a=7 b=running", false, v1.PodRunning},
		{never, "i:i a", "i=running", false, v1.PodPending},
		{never, "i:i a", "i=0", false, v1.PodPending},
		{never, "i:i a", "i=0 a=running", false, v1.PodRunning},
		{never, "i:i a", "i=1", true, v1.PodFailed},
		{always, "i:i a", "i=1", false, v1.PodPending},
		{always, "s:s a", "s=running", false, v1.PodPending},
		{always, "s:s a", "s=running a=running", false, v1.PodRunning},
		{always, "s:s a", "s=1 a=running", false, v1.PodRunning},
		{never, "s:s a", "s=running a=0", false, v1.PodRunning},
		{never, "s:s a", "s=137 a=0", true, v1.PodSucceeded},
	} {
		in := input(podOf(tt.policy, tt.pod), tt.have)
		in.Ended = tt.ended
		if got := Generate(in).Phase; got != tt.want {
			t.Errorf("%s pod %q, %q, ended %v: %s, want %s", tt.policy, tt.pod, tt.have, tt.ended, got, tt.want)
		}
	}
}

func TestConditions(t *testing.T) {
	for _, tt := range []struct {
		name, pod, have string
		ended           bool
		want            string // TYPE=STATUS(reason)…
	}{
		{"running", "a", "a=running", false, "Initialized=True Ready=True ContainersReady=True"},
		{"one not ready", "a b", "a=running b=1", false, "Initialized=True Ready=False(ContainersNotReady) ContainersReady=False(ContainersNotReady)"},
		{"init runs", "i:i a", "i=running", false, "Initialized=False(ContainersNotInitialized) Ready=False(ContainersNotReady) ContainersReady=False(ContainersNotReady)"},
		{"succeeded", "a", "a=0", true, "Initialized=True(PodCompleted) Ready=False(PodCompleted) ContainersReady=False(PodCompleted)"},
		{"failed", "a", "a=1", true, "Initialized=True Ready=False(PodFailed) ContainersReady=False(PodFailed)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := input(podOf(v1.RestartPolicyNever, tt.pod), tt.have)
			in.Ended = tt.ended
			s := Generate(in)
			var got []string
			for _, kind := range []v1.PodConditionType{v1.PodInitialized, v1.PodReady, v1.ContainersReady} {
				c := pod.Condition(&s, kind)
				text := fmt.Sprintf("%s=%s", kind, c.Status)
				if c.Reason != "" {
					text += "(" + c.Reason + ")"
				}
				got = append(got, text)
			}
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("%s\nwant %s", g, tt.want)
			}
		})
	}
}

// TestReadinessGates: others' conditions stay, and hold Ready back (KEP-580).
func TestReadinessGates(t *testing.T) {
	p := podOf(v1.RestartPolicyAlways, "a")
	p.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "example.com/ok"}}
	in := input(p, "a=running")
	s := Generate(in)
	if c := pod.Condition(&s, v1.PodReady); c.Status != v1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" {
		t.Errorf("without the condition: %+v", c)
	}
	p.Status.Conditions = []v1.PodCondition{{Type: "example.com/ok", Status: v1.ConditionTrue}}
	s = Generate(in)
	if c := pod.Condition(&s, v1.PodReady); c.Status != v1.ConditionTrue || pod.Condition(&s, "example.com/ok") == nil {
		t.Errorf("with it: %+v", c)
	}
}

// TestTransitions: the time of a condition changes with its status only.
func TestTransitions(t *testing.T) {
	in := input(podOf(v1.RestartPolicyAlways, "a"), "a=running")
	first := Generate(in)
	in.Old, in.Now = first, metav1.NewTime(now.Add(time.Minute))
	second := Generate(in)
	if !pod.Condition(&second, v1.PodReady).LastTransitionTime.Equal(&now) || !second.StartTime.Equal(&now) {
		t.Errorf("nothing changed: %+v, start %v", pod.Condition(&second, v1.PodReady), second.StartTime)
	}
	in.Have = haveOf("a=1")
	third := Generate(in)
	if !pod.Condition(&third, v1.PodReady).LastTransitionTime.Equal(&in.Now) {
		t.Errorf("it is no longer ready: %+v", pod.Condition(&third, v1.PodReady))
	}
}

func TestContainers(t *testing.T) {
	in := input(podOf(v1.RestartPolicyAlways, "a"), "a=3 a=2")
	in.Reasons = map[string]v1.ContainerStateWaiting{"a": Waiting("CrashLoopBackOff", "wait")}
	c := Generate(in).ContainerStatuses[0]
	if c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" || c.RestartCount != 1 || c.ContainerID != "test://a-1" || c.Image != "x" {
		t.Errorf("between crashes: %+v", c)
	}
	if end := c.LastTerminationState.Terminated; end == nil || end.ExitCode != 3 || end.Message != "last words" {
		t.Errorf("the last end is %+v", end)
	}
	delete(in.Reasons, "a")
	c = Generate(in).ContainerStatuses[0]
	if c.State.Terminated == nil || c.State.Terminated.ExitCode != 3 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 2 {
		t.Errorf("two ends: %+v", c)
	}
}

// TestVanished: of a container that ran and is gone without a trace, it is told that nothing is known.
func TestVanished(t *testing.T) {
	in := input(podOf(v1.RestartPolicyAlways, "a"), "a=running")
	in.Old = Generate(in)
	in.Have = haveOf("")
	c := Generate(in).ContainerStatuses[0]
	if end := c.LastTerminationState.Terminated; end == nil || end.Reason != "ContainerStatusUnknown" || end.ExitCode != 137 || c.RestartCount != 1 {
		t.Errorf("%+v", c)
	}
}

// TestKeepsMessage: last words stay in the status after the pod's files are gone.
func TestKeepsMessage(t *testing.T) {
	in := input(podOf(v1.RestartPolicyNever, "a"), "a=1")
	in.Ended = true
	in.Old = Generate(in)
	in.Message = func(*runtime.Container) string { return "" }
	if end := Generate(in).ContainerStatuses[0].State.Terminated; end.Message != "last words" {
		t.Errorf("%+v", end)
	}
}

// TestFinal: what ends a pod from outside decides its phase, which then stays.
func TestFinal(t *testing.T) {
	in := input(podOf(v1.RestartPolicyAlways, "a"), "a=running")
	in.Final = &Final{Reason: "Evicted", Message: "short of memory", Condition: &v1.PodCondition{Type: v1.DisruptionTarget, Status: v1.ConditionTrue}}
	s := Generate(in)
	if s.Phase != v1.PodRunning || s.Reason != "" || pod.Condition(&s, v1.DisruptionTarget) != nil {
		t.Errorf("evicted, and still running: %s, %s, %+v", s.Phase, s.Reason, s.Conditions)
	}
	in.Ended = true
	s = Generate(in)
	if s.Phase != v1.PodFailed || s.Reason != "Evicted" || pod.Condition(&s, v1.DisruptionTarget) == nil {
		t.Errorf("evicted: %s, %s, %+v", s.Phase, s.Reason, s.Conditions)
	}
	in.Final, in.Old = nil, s
	if s = Generate(in); s.Phase != v1.PodFailed || s.Reason != "Evicted" || s.Message != "short of memory" {
		t.Errorf("later: %s, %s, %s", s.Phase, s.Reason, s.Message)
	}
}

// TestDisruptionOfOthers: what the eviction API or the scheduler says of a pod that it is about to end stays; of a static pod,
// what ended its last run does not.
func TestDisruptionOfOthers(t *testing.T) {
	target := v1.PodCondition{Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: "EvictionByEvictionAPI"}
	p := podOf(v1.RestartPolicyAlways, "a")
	p.Status.Conditions = []v1.PodCondition{target}
	s := Generate(input(p, "a=running"))
	if c := pod.Condition(&s, v1.DisruptionTarget); c == nil || c.Reason != target.Reason {
		t.Errorf("the description lost it: %+v", s.Conditions)
	}
	if s = merge(p, v1.PodStatus{}); pod.Condition(&s, v1.DisruptionTarget) == nil {
		t.Errorf("the patch loses it: %+v", s.Conditions)
	}
	ours := v1.PodCondition{Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet}
	if s = merge(p, v1.PodStatus{Conditions: []v1.PodCondition{ours}}); len(s.Conditions) != 1 || s.Conditions[0].Reason != ours.Reason {
		t.Errorf("ours does not replace it: %+v", s.Conditions)
	}
	p.Annotations = map[string]string{pod.SourceAnnotation: pod.FileSource}
	in := input(p, "a=running")
	in.Old.Conditions = p.Status.Conditions
	if s = Generate(in); pod.Condition(&s, v1.DisruptionTarget) != nil {
		t.Errorf("a static pod that runs again has it: %+v", s.Conditions)
	}
	p.Annotations[pod.MirrorAnnotation] = "hash"
	if s = merge(p, v1.PodStatus{}); pod.Condition(&s, v1.DisruptionTarget) != nil {
		t.Errorf("its mirror has it: %+v", s.Conditions)
	}
}

// TestRestartAll: while all containers are restarted, those that have ended wait for it, whatever their policies are.
func TestRestartAll(t *testing.T) {
	p := podOf(v1.RestartPolicyNever, "a b")
	p.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{{
		Action:    v1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	}}
	s := Generate(input(p, "a=42 b=137"))
	for _, c := range s.ContainerStatuses {
		if c.State.Waiting == nil || c.State.Waiting.Reason != "RestartingAllContainers" || c.LastTerminationState.Terminated == nil {
			t.Errorf("%s: %+v", c.Name, c.State)
		}
	}
	if c := pod.Condition(&s, v1.AllContainersRestarting); s.Phase != v1.PodRunning || c == nil || c.Status != v1.ConditionTrue {
		t.Errorf("phase %s, %+v", s.Phase, c)
	}
	in := input(p, "a=running b=running a=42 b=137")
	for _, c := range in.Have.Containers {
		c.FinishedAt = c.CreatedAt
	}
	s = Generate(in)
	if c := pod.Condition(&s, v1.AllContainersRestarting); s.Phase != v1.PodRunning || c == nil || c.Status != v1.ConditionFalse {
		t.Errorf("once they run: phase %s, %+v", s.Phase, c)
	}
}
