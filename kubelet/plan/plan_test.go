package plan

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/runtime"
	"github.com/orlop/orlop/kubelet/spec"
)

// A state is written as words: "NAME=STATE" for the newest container of a name, where STATE is running, created, unknown, or
// an exit code; "!" behind it says that a probe asks for its end, "~" that it has not started yet, "*" that it has another
// image, "@" that it was in an earlier sandbox. A name may come twice, the newest first.
type words string

// have reads a state.
func (w words) have(p *v1.Pod, sandbox string) (*runtime.Pod, map[string]bool, map[string]bool) {
	have := &runtime.Pod{UID: p.UID}
	failed, unstarted := map[string]bool{}, map[string]bool{}
	if sandbox != "" {
		have.Sandboxes = append(have.Sandboxes, sandboxOf(sandbox))
	}
	attempts := map[string]uint32{}
	for _, word := range strings.Fields(string(w)) {
		name, _, _ := strings.Cut(word, "=")
		attempts[name]++
	}
	for i, word := range strings.Fields(string(w)) {
		name, state, _ := strings.Cut(word, "=")
		bare := strings.TrimRight(state, "!~*@")
		attempts[name]--
		id := fmt.Sprintf("%s-%d", name, attempts[name])
		c := &runtime.Container{SandboxID: "s", ContainerStatus: &cri.ContainerStatus{
			Id: id, Metadata: &cri.ContainerMetadata{Name: name, Attempt: attempts[name]}, CreatedAt: int64(1000 - i), FinishedAt: int64(1000 - i),
			Annotations: map[string]string{},
		}}
		for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for j := range list {
				if list[j].Name == name {
					c.Annotations[runtime.HashAnnotation] = spec.Hash(&list[j])
				}
			}
		}
		switch bare {
		case "running":
			c.State = cri.ContainerState_CONTAINER_RUNNING
		case "created":
			c.State = cri.ContainerState_CONTAINER_CREATED
		case "unknown":
			c.State = cri.ContainerState_CONTAINER_UNKNOWN
		default:
			c.State = cri.ContainerState_CONTAINER_EXITED
			_, _ = fmt.Sscan(bare, &c.ExitCode)
		}
		failed[id] = strings.Contains(state, "!")
		unstarted[id] = strings.Contains(state, "~")
		if strings.Contains(state, "*") {
			c.Annotations[runtime.HashAnnotation] = "of another image"
		}
		if strings.Contains(state, "@") {
			c.SandboxID = "earlier"
		}
		have.Containers = append(have.Containers, c)
	}
	return have, failed, unstarted
}

func sandboxOf(state string) *cri.PodSandboxStatus {
	s := &cri.PodSandboxStatus{Id: "s", Metadata: &cri.PodSandboxMetadata{Attempt: 2}, Network: &cri.PodSandboxNetworkStatus{Ip: "10.0.0.1"}}
	switch state {
	case "notready":
		s.State = cri.PodSandboxState_SANDBOX_NOTREADY
	case "noip":
		s.Network.Ip = ""
	case "host":
		s.Linux = &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}}
	}
	return s
}

// podOf makes a pod of names: "a" is a main container, "i:a" an init container, "s:a" a sidecar.
func podOf(policy v1.RestartPolicy, names string) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: policy}}
	p.UID = "u"
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

// text writes a plan as words, in the order in which it is done.
func (p Plan) text() string {
	var out []string
	if p.EndPod {
		out = append(out, "end")
	}
	if p.Done {
		out = append(out, "done")
	}
	if p.NewSandbox {
		out = append(out, fmt.Sprintf("sandbox/%d", p.Attempt))
	}
	for _, k := range p.Kill {
		out = append(out, "kill:"+k.ID)
	}
	for _, s := range p.Start {
		out = append(out, fmt.Sprintf("start:%s/%d", s.Container.Name, s.Attempt))
	}
	for _, d := range p.Delayed {
		out = append(out, "wait:"+d.Container)
	}
	return strings.Join(out, " ")
}

const (
	always    = v1.RestartPolicyAlways
	onFailure = v1.RestartPolicyOnFailure
	never     = v1.RestartPolicyNever
)

func TestMake(t *testing.T) {
	for _, tt := range []struct {
		name    string
		policy  v1.RestartPolicy
		pod     string
		sandbox string
		state   words
		want    string
	}{
		{"new pod", always, "a", "", "", "sandbox/0"},
		{"sandbox is there", always, "a b", "ready", "", "start:a/0 start:b/0"},
		{"one runs", always, "a b", "ready", "a=running", "start:b/0"},
		{"all run", always, "a b", "ready", "a=running b=running", ""},
		{"created and never started", always, "a", "ready", "a=created", "start:a/1"},
		{"lost by the runtime", always, "a", "ready", "a=unknown", "start:a/1"},

		{"sandbox died", always, "a", "notready", "a=137", "end sandbox/3"},
		{"sandbox died, container goes on", always, "a", "notready", "a=running", "end sandbox/3"},
		{"sandbox died, container goes on, never again", never, "a", "notready", "a=running", "end done"},
		{"sandbox without address", always, "a", "noip", "", "end sandbox/3"},
		{"sandbox on the host network", always, "a", "host", "a=running", "end sandbox/3"},
		{"sandbox died after a job was done", onFailure, "a", "notready", "a=0", "end done"},
		{"sandbox died before a job was done", onFailure, "a b", "notready", "a=0 b=1", "end sandbox/3"},
		{"sandbox died, never again", never, "a", "notready", "a=1", "end done"},
		{"sandbox died after init", never, "i:i a", "notready", "i=0", "end sandbox/3"},
		{"sandbox died after init failed for good", never, "i:i a", "notready", "i=1", "end done"},
		{"new sandbox after the old one", always, "i:i a", "ready", "a=137@ i=0@", "start:i/1"},
		{"new sandbox, job was half done", onFailure, "a b", "ready", "a=0@ b=1@", "start:b/1"},

		{"always restarts success", always, "a", "ready", "a=0", "start:a/1"},
		{"always restarts failure", always, "a", "ready", "a=1", "start:a/1"},
		{"on failure, success", onFailure, "a", "ready", "a=0", "end done"},
		{"on failure, failure", onFailure, "a", "ready", "a=1", "start:a/1"},
		{"never, success", never, "a", "ready", "a=0", "end done"},
		{"never, failure", never, "a", "ready", "a=1", "end done"},
		{"never, one left", never, "a b", "ready", "a=1 b=running", ""},
		{"attempts go on", always, "a", "ready", "a=1 a=1 a=1", "start:a/3"},

		{"init first", always, "i:i i:j a", "ready", "", "start:i/0"},
		{"init runs", always, "i:i i:j a", "ready", "i=running", ""},
		{"next init", always, "i:i i:j a", "ready", "i=0", "start:j/0"},
		{"init done", always, "i:i i:j a", "ready", "j=0 i=0", "start:a/0"},
		{"init failed", always, "i:i a", "ready", "i=1", "start:i/1"},
		{"init failed, on failure", onFailure, "i:i a", "ready", "i=1", "start:i/1"},
		{"init failed, never", never, "i:i a", "ready", "i=1", "end done"},
		{"init is not repeated once main ran", always, "i:i a", "ready", "a=1 i=0", "start:a/1"},
		{"init that was removed is not repeated", always, "i:i a", "ready", "a=running", ""},
		{"init is repeated while main was only created", always, "i:i a", "ready", "a=created i=0", "start:a/1"},

		{"sidecar first", always, "s:s a", "ready", "", "start:s/0"},
		{"sidecar not started", always, "s:s a", "ready", "s=running~", ""},
		{"sidecar started", always, "s:s a", "ready", "s=running", "start:a/0"},
		{"sidecar before init", always, "s:s i:i a", "ready", "s=running", "start:i/0"},
		{"sidecar died before main", always, "s:s i:i a", "ready", "s=1 i=running", "start:s/1"},
		{"sidecar died beside main", always, "s:s a", "ready", "s=0 a=running", "start:s/1"},
		{"sidecar died in a job", never, "s:s a", "ready", "s=1 a=running", "start:s/1"},
		{"main done, sidecar must go", never, "s:s a", "ready", "s=running a=0", "end done"},
		{"sidecar's restart holds back no main", always, "s:s a", "ready", "s=running~ a=1", "start:a/1"},

		{"probe failed", always, "a", "ready", "a=running!", "kill:a-0"},
		{"probe failed, never", never, "a", "ready", "a=running!", "kill:a-0"},
		{"sidecar's probe failed", always, "s:s a", "ready", "s=running! a=running", "kill:s-0"},
		{"image changed", always, "a", "ready", "a=running*", "kill:a-0 start:a/1"},
		{"image changed, never", never, "a", "ready", "a=running*", "kill:a-0 start:a/1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := podOf(tt.policy, tt.pod)
			if got := Make(input(p, tt.sandbox, tt.state)).text(); got != tt.want {
				t.Errorf("%s pod %q with sandbox %q, %q: %q, want %q", tt.policy, tt.pod, tt.sandbox, tt.state, got, tt.want)
			}
		})
	}
}

func input(p *v1.Pod, sandbox string, state words) Input {
	have, failed, unstarted := state.have(p, sandbox)
	return Input{
		Pod: p, Have: have,
		Failed:  func(id string) (Failure, bool) { return Failure{}, failed[id] },
		Started: func(_ *v1.Container, s *runtime.Container) bool { return !unstarted[s.Id] },
		BackOff: func(string, time.Time) time.Duration { return 0 },
	}
}

// TestBackOff delays only what has ended.
func TestBackOff(t *testing.T) {
	in := input(podOf(always, "a b c"), "ready", "a=1 b=running")
	in.BackOff = func(name string, _ time.Time) time.Duration { return time.Second }
	if got, want := Make(in).text(), "start:c/0 wait:a"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestEphemeral starts a debugging container once, and whatever else goes on.
func TestEphemeral(t *testing.T) {
	p := podOf(always, "i:i a")
	p.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "e", Image: "x"}}}
	for state, want := range map[words]string{
		"i=running":         "start:e/0",
		"a=running i=0":     "start:e/0",
		"e=1 a=running i=0": "",
	} {
		if got := Make(input(p, "ready", state)).text(); got != want {
			t.Errorf("%q: %q, want %q", state, got, want)
		}
	}
}

// TestAttempt goes on counting from what the API server remembers of a container that is gone.
func TestAttempt(t *testing.T) {
	p := podOf(always, "a")
	p.Status.ContainerStatuses = []v1.ContainerStatus{{
		Name: "a", RestartCount: 4, LastTerminationState: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: 1}},
	}}
	if got, want := Make(input(p, "ready", "")).text(), "start:a/5"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestRestartRules: a container's rules come before its own policy, and that before the pod's.
func TestRestartRules(t *testing.T) {
	own := v1.ContainerRestartPolicyNever
	rule := func(op v1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) v1.ContainerRestartRule {
		return v1.ContainerRestartRule{
			Action: v1.ContainerRestartRuleActionRestart, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: op, Values: codes},
		}
	}
	p := podOf(always, "a")
	c := &p.Spec.Containers[0]
	c.RestartPolicy = &own
	c.RestartPolicyRules = []v1.ContainerRestartRule{rule(v1.ContainerRestartRuleOnExitCodesOpIn, 42)}
	for code, want := range map[int32]bool{42: true, 1: false, 0: false} {
		if got := RestartsAfter(p, c, code); got != want {
			t.Errorf("rule In [42], own policy Never, exit code %d: %v", code, got)
		}
	}
	c.RestartPolicyRules = []v1.ContainerRestartRule{rule(v1.ContainerRestartRuleOnExitCodesOpNotIn, 0, 1)}
	for code, want := range map[int32]bool{0: false, 1: false, 2: true} {
		if got := RestartsAfter(p, c, code); got != want {
			t.Errorf("rule NotIn [0 1], own policy Never, exit code %d: %v", code, got)
		}
	}
}
