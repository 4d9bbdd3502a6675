package kubelet

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestLogs reads logs by time and by lines, and those of the container before.
func TestLogs(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "n=$(cat /job/n 2>/dev/null || echo 0); echo $((n+1)) > /job/n; for i in 1 2 3; do echo run $n line $i; done; [ $n = 0 ] && sleep 3 && exit 1; trap exit TERM; sleep 3; echo late; while :; do sleep 0.1; done"]
    volumeMounts: [{name: job, mountPath: /job}]
  volumes: [{name: job, emptyDir: {}}]
`)
	s.waitPod("writer", "in its second run", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount == 1 && ready(p)
	})
	s.eventually("the last line", func() error {
		if got := s.kubectl("logs", "writer"); got != "run 1 line 1\nrun 1 line 2\nrun 1 line 3\nlate\n" {
			return fmt.Errorf("the log is %q", got)
		}
		return nil
	})
	for _, tt := range []struct{ args, want string }{
		{"--previous", "run 0 line 1\nrun 0 line 2\nrun 0 line 3\n"},
		{"--tail=2", "run 1 line 3\nlate\n"},
		{"--tail=0", ""},
		{"--limit-bytes=8", "run 1 li"},
		{"-l app=absent", ""},
	} {
		args := append([]string{"logs"}, strings.Fields(tt.args)...)
		if args[1] != "-l" {
			args = append(args, "writer")
		}
		if got := s.kubectl(args...); got != tt.want {
			t.Errorf("logs %s: %q, want %q", tt.args, got, tt.want)
		}
	}
	s.timedLogs()
}

// timedLogs looks at the times of the lines, and asks for those since one of them.
func (s *space) timedLogs() {
	s.Helper()
	var last time.Time
	lines := strings.Split(strings.TrimSpace(s.kubectl("logs", "writer", "--timestamps")), "\n")
	for _, line := range lines {
		stamp, _, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil || at.Before(last) {
			s.Fatalf("line %q: %v, the one before is of %s", line, err, last)
		}
		last = at
	}
	if len(lines) != 4 {
		s.Fatalf("lines with times: %q", lines)
	}
	if got := s.kubectl("logs", "writer", "--since-time="+last.Add(-time.Second).Format(time.RFC3339Nano)); got != "late\n" {
		s.Errorf("logs since one second before the last line: %q", got)
	}
	age := time.Since(last)
	if got := s.kubectl("logs", "writer", "--since="+(age+2*time.Second).Round(time.Second).String()); !strings.HasSuffix(got, "late\n") || strings.Contains(got, "run 0") {
		s.Errorf("logs of the last %s: %q", age, got)
	}
	if _, err := s.tryKubectl("", "logs", "writer", "-c", "absent"); err == nil || !strings.Contains(err.Error(), "container absent is not valid for pod writer") {
		s.Errorf("logs of a container that is not there: %v", err)
	}
}

// TestAttach talks to a process that runs, which ends with what it is told.
func TestAttach(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers: [{name: main, image: IMAGE, stdin: true, stdinOnce: true, command: [sh, -c, "read x; echo you said $x; exit 4"]}]
`)
	s.waitPod("talker", "ready", ready)
	out, err := s.tryKubectl("hello\n", "attach", "-i", "talker")
	if !strings.Contains(out, "you said hello\n") {
		t.Errorf("attach: %q, %v", out, err)
	}
	p := s.waitPod("talker", "done", phase(v1.PodFailed))
	if end := p.Status.ContainerStatuses[0].State.Terminated; end.ExitCode != 4 {
		t.Errorf("it ended with %+v", end)
	}
	if out := s.kubectl("logs", "talker"); out != "you said hello\n" {
		t.Errorf("its log: %q", out)
	}
}

// TestDebugNode looks at the node from a pod in its namespaces.
func TestDebugNode(t *testing.T) {
	s := begin(t)
	s.kubectl("debug", "node/"+nodeName, "--image="+image, "--profile=sysadmin", "--", "sh", "-c", "test -d /host/proc/1/ns && cat /proc/1/comm && echo looked")
	var name string
	s.eventually("the debugger to have looked", func() error {
		for _, p := range s.pods("") {
			if name = p.Name; p.Status.Phase == v1.PodSucceeded {
				return nil
			}
		}
		return fmt.Errorf("pod %q", name)
	})
	if out := s.kubectl("logs", name); !strings.HasSuffix(out, "looked\n") {
		t.Errorf("the debugger says %q", out)
	}
}

const drained = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: main
        image: IMAGE
        command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]
        volumeMounts: [{name: work, mountPath: /job}]
      volumes: [{name: work, emptyDir: {}}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: IMAGE, command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
`

// TestDrain empties the node as far as a budget allows, then wholly, but for what belongs to it; and pods come back later.
func TestDrain(t *testing.T) {
	s := alone(t) // no other test could have a pod scheduled
	s.apply(drained)
	s.allReady("app=web", 2)
	s.allReady("app=agent", 1)
	agent := s.containerIDs("app=agent")
	s.eventually("the budget to count", func() error {
		b, err := control.Client.PolicyV1().PodDisruptionBudgets(s.name).Get(t.Context(), "web", metav1.GetOptions{})
		if err == nil && b.Status.DisruptionsAllowed != 1 {
			err = fmt.Errorf("it allows %d", b.Status.DisruptionsAllowed)
		}
		return err
	})
	t.Cleanup(func() { s.command(context.Background(), "uncordon", nodeName).Run() }) //nolint:errcheck // else every test after this one fails, and says why
	drain := []string{"drain", nodeName, "--ignore-daemonsets", "--delete-emptydir-data", "--force"}
	out, err := s.tryKubectl("", append(drain, "--timeout=8s")...)
	if err == nil || !strings.Contains(err.Error(), "would violate the pod's disruption budget") {
		t.Fatalf("drain against the budget: %v: %s", err, out)
	}
	running := 0
	for _, p := range s.pods("app=web") {
		if ready(&p) {
			running++
		}
	}
	if running != 1 {
		t.Errorf("the budget keeps one pod, %d are ready", running)
	}
	s.kubectl("delete", "pdb", "web")
	s.kubectl(append(drain, "--timeout=60s")...)
	for _, p := range s.pods("app=web") {
		if p.Spec.NodeName != "" {
			t.Errorf("%s is on the node after it was drained", p.Name)
		}
	}
	if now := s.containerIDs("app=agent"); fmt.Sprint(now) != fmt.Sprint(agent) {
		t.Errorf("the DaemonSet's pod was %v and is %v", agent, now)
	}
	s.kubectl("uncordon", nodeName)
	s.allReady("app=web", 2)
}
