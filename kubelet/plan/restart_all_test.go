package plan

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// askingForAll is a pod in which the exit code 42 of a container asks for the restart of all.
func askingForAll(policy v1.RestartPolicy, names, container string) *v1.Pod {
	p := podOf(policy, names)
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Name == container {
				list[i].RestartPolicyRules = []v1.ContainerRestartRule{{
					Action:    v1.ContainerRestartRuleActionRestartAllContainers,
					ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
				}}
			}
		}
	}
	return p
}

// TestRestartAll: what was made before a container asked for it is ended, counts no more, and starts anew in its order.
func TestRestartAll(t *testing.T) {
	for _, tt := range []struct {
		name, pod, container string
		state                words
		want                 string
	}{
		{"another exit code", "i:i a b", "a", "a=1 b=running i=0", ""},
		{"the others are ended, sidecars last", "i:i s:s a b", "a", "a=42 b=running s=running i=0", "kill:b-0 kill:s-0"},
		{"init comes first", "i:i a b", "a", "a=42 b=137 i=0", "start:i/1"},
		{"init runs", "i:i a b", "a", "i=running a=42 b=137 i=0", ""},
		{"a container that succeeded starts too", "i:i a b", "a", "i=0 a=42 b=0 i=0", "start:a/1 start:b/1"},
		{"all run again", "i:i a b", "a", "b=running a=running i=0 a=42 b=137 i=0", ""},
		{"it asks again", "i:i a b", "a", "a=42 b=running i=0 a=42 b=137 i=0", "kill:b-1"},
		{"and again init comes first", "i:i a b", "a", "a=42 b=137 i=0 a=42 b=137 i=0", "start:i/2"},
		{"the end of what asked in the past is no new asking", "a b", "a", "b=1 a=running a=42 b=137", ""},
		{"an init container may ask", "s:s i:i a", "i", "i=42 s=running", "kill:s-0"},
		{"and all begin with the first", "s:s i:i a", "i", "i=42 s=137", "start:s/1"},
	} {
		p := askingForAll(never, tt.pod, tt.container)
		if got := Make(input(p, "ready", tt.state)).text(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	in := input(askingForAll(never, "a b", "a"), "ready", "a=42 b=137")
	in.BackOff = func(name string, _ time.Time) time.Duration { return map[string]time.Duration{"a": time.Second}[name] }
	if got, want := Make(in).text(), "start:b/1 wait:a"; got != want {
		t.Errorf("while one must wait: %q, want %q", got, want)
	}
}
