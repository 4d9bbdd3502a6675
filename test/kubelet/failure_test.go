package kubelet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// TestCrashLoop restarts a container with growing delays and tells why.
func TestCrashLoop(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "echo last words > /dev/termination-log; exit 7"]
`)
	p := s.waitPod("crash", "in a crash loop", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount >= 2 &&
			p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff"
	})
	c := p.Status.ContainerStatuses[0]
	if end := c.LastTerminationState.Terminated; end == nil || end.ExitCode != 7 || end.Reason != "Error" || end.Message != "last words\n" {
		t.Errorf("last state: %+v", end)
	}
	if p.Status.Phase != v1.PodRunning || !strings.HasPrefix(c.State.Waiting.Message, "back-off ") {
		t.Errorf("phase %s, waiting %+v", p.Status.Phase, c.State.Waiting)
	}
	s.event("crash", "BackOff")
}

// TestOOM tells that the kernel killed a container for its memory.
func TestOOM(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "x=x; while :; do x=$x$x; done"]
    resources: {limits: {memory: 20Mi}}
`)
	p := s.waitPod("greedy", "failed", phase(v1.PodFailed))
	if end := p.Status.ContainerStatuses[0].State.Terminated; end == nil || end.Reason != "OOMKilled" || end.ExitCode != 137 {
		t.Errorf("state: %+v", p.Status.ContainerStatuses[0].State)
	}
}

// TestDeletionWithGrace is not ready before postStart has ended, runs preStop first, gives the container its grace, and keeps it ready as long as it says so.
func TestDeletionWithGrace(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap 'echo got TERM; sleep 2; echo leaving; exit 0' TERM; echo up; while :; do sleep 0.1; done"]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "sleep 2; echo post > /proc/1/fd/1"]}}
      preStop: {exec: {command: [sh, -c, "echo pre > /proc/1/fd/1; sleep 1"]}}
`)
	p := s.waitPod("slow", "ready", ready)
	from, to := condition(p, v1.PodReadyToStartContainers).LastTransitionTime, condition(p, v1.PodReady).LastTransitionTime
	if to.Sub(from.Time) < time.Second {
		t.Errorf("ready at %s, %s after it could start; postStart takes 2 s", to, to.Sub(from.Time))
	}
	log := make(chan string, 1)
	go func() {
		text, _ := s.tryKubectl("", "logs", "-f", "slow")
		log <- text
	}()
	time.Sleep(500 * time.Millisecond) // for the log to be followed
	began := time.Now()
	s.kubectl("delete", "pod", "slow")
	took := time.Since(began)
	text := <-log
	for _, want := range []string{"up\n", "post\n", "pre\ngot TERM\nleaving\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("log has no %q: %q", want, text)
		}
	}
	if took < 3*time.Second || took > 15*time.Second {
		t.Errorf("deletion took %s; preStop takes 1 s and the end 2 s", took)
	}
}

// TestImageErrors tells why a pod waits for its image.
func TestImageErrors(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec:
  containers: [{name: main, image: "127.0.0.1:1/no/such:1"}, {name: never, image: "127.0.0.1:1/never:1", imagePullPolicy: Never}]
`)
	reasons := map[string]bool{}
	s.eventually("the reasons", func() error {
		for _, c := range s.pod("absent").Status.ContainerStatuses {
			if c.State.Waiting != nil {
				reasons[c.Name+" "+c.State.Waiting.Reason] = true
			}
		}
		for _, want := range []string{"main RegistryUnavailable", "main ImagePullBackOff", "never ErrImageNeverPull"} {
			if !reasons[want] {
				return fmt.Errorf("no %q in %v", want, reasons)
			}
		}
		return nil
	})
}

// TestConfigErrors tells what a container lacks, and starts it as soon as that is there.
func TestConfigErrors(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]
    env: [{name: X, valueFrom: {configMapKeyRef: {name: late, key: x}}}]
`)
	s.waitPod("waits", "short of its config map", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
	})
	s.kubectl("create", "configmap", "late", "--from-literal=x=y")
	s.waitPod("waits", "ready", ready)
}

// TestLivenessRestarts restarts a container whose probe fails, and counts.
func TestLivenessRestarts(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: sick}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "touch /tmp/well; sleep 2; rm /tmp/well; while :; do sleep 0.1; done"]
    livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 1}
`)
	p := s.waitPod("sick", "restarted", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount >= 1
	})
	if end := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; end == nil || end.ExitCode != 137 {
		t.Errorf("last state: %+v", end)
	}
	if e := s.event("sick", "Unhealthy"); !strings.Contains(e.Message, "Liveness probe failed") {
		t.Errorf("event: %s", e.Message)
	}
	if e := s.event("sick", "Killing"); !strings.Contains(e.Message, "failed liveness probe, will be restarted") {
		t.Errorf("event: %s", e.Message)
	}
}

// TestDeadline fails a pod that is active for too long.
func TestDeadline(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  activeDeadlineSeconds: 2
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: IMAGE, command: [sleep, "1000"]}]
`)
	if p := s.waitPod("late", "failed", phase(v1.PodFailed)); p.Status.Reason != "DeadlineExceeded" {
		t.Errorf("reason %s: %s", p.Status.Reason, p.Status.Message)
	}
}

// TestDiskLimit evicts a pod whose emptyDir holds more than it may.
func TestDiskLimit(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: hoarder}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "dd if=/dev/zero of=/job/f bs=1024 count=5000; trap exit TERM; while :; do sleep 0.1; done"]
    volumeMounts: [{name: work, mountPath: /job}]
  volumes: [{name: work, emptyDir: {sizeLimit: 1Mi}}]
`)
	p := &v1.Pod{}
	s.within(3*patience, "the pod to be evicted", func() error {
		if p = s.pod("hoarder"); p.Status.Phase != v1.PodFailed {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		return nil
	})
	if p.Status.Reason != "Evicted" || !strings.Contains(p.Status.Message, `EmptyDir volume "work" exceeds the limit "1Mi"`) {
		t.Errorf("reason %s: %s", p.Status.Reason, p.Status.Message)
	}
	if c := condition(p, v1.DisruptionTarget); c == nil || c.Reason != "TerminationByKubelet" {
		t.Errorf("DisruptionTarget is %+v", c)
	}
}
