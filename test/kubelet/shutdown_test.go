package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/logind"
)

// lasting is a pod that writes into a file when it was asked to end, and when it ends a second later.
const lasting = `
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  priorityClassName: CLASS
  nodeName: node
  terminationGracePeriodSeconds: 60
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap 'echo NAME asked >> /ends/file; sleep 1; echo NAME ended >> /ends/file; exit 3' TERM; touch /up; while :; do sleep 0.1; done"]
    readinessProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1}
    volumeMounts: [{name: ends, mountPath: /ends}]
  volumes: [{name: ends, hostPath: {path: DIR}}]
`

// TestShutdown: before the machine goes off the node is not ready, pods are Failed in the order of their priority, new ones are
// refused, and all that is told before the lock is closed. A shutdown that is cancelled leaves a node as any other.
func TestShutdown(t *testing.T) {
	kernel.Require(t, kernel.Command("dbus-daemon"))
	s := alone(t)
	bus := node.onBus(t)
	dir := t.TempDir()
	begin := func(name, class string) {
		s.apply(strings.NewReplacer("NAME", name, "CLASS", class, "DIR", dir).Replace(lasting))
	}
	begin("plain", `""`)
	begin("critical", "system-node-critical")
	for _, name := range []string{"plain", "critical"} {
		s.eventually("the pod "+name, func() error { return s.isReady(name) })
	}
	s.eventually("the lock", func() error { return held(bus, 1) })

	took, err := bus.Shutdown()
	if err != nil || took < 2*time.Second {
		t.Fatalf("the shutdown waited %s, %v", took, err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(text) != "plain asked\nplain ended\ncritical asked\ncritical ended\n" {
		t.Errorf("when the lock was closed, it had gone\n%s%v", text, err)
	}
	if os.Getenv("ORLOP_KUBELET") == "real" { // it tells later
		s.eventually("the last status", func() error { return s.phase("critical", v1.PodFailed) })
	}
	for _, name := range []string{"plain", "critical"} {
		p := s.pod(name)
		if p.Status.Phase != v1.PodFailed || p.Status.Reason != "Terminated" || p.Status.Message != "Pod was terminated in response to imminent node shutdown." {
			t.Errorf("%s: %s, %s, %s", name, p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
		if c := condition(p, v1.DisruptionTarget); c == nil || c.Status != v1.ConditionTrue || c.Reason != "TerminationByKubelet" {
			t.Errorf("%s: DisruptionTarget is %+v", name, c)
		}
	}
	if c := s.nodeReady(); c.Status != v1.ConditionFalse || c.Reason != "KubeletNotReady" || c.Message != "node is shutting down" {
		t.Errorf("the node is %+v", c)
	}
	begin("late", `""`)
	s.eventually("the pod late to be refused", func() error { return s.phase("late", v1.PodFailed) })
	if late := s.pod("late").Status; late.Reason != "NodeShutdown" || !strings.Contains(late.Message, "Pod was rejected as the node is shutting down.") {
		t.Errorf("late: %s, %s", late.Reason, late.Message)
	}

	if err := bus.Prepare(false); err != nil {
		t.Fatal(err)
	}
	s.eventually("the node to be ready", func() error {
		if c := s.nodeReady(); c.Status != v1.ConditionTrue {
			return errors.New(c.Message)
		}
		return nil
	})
	begin("next", `""`)
	s.eventually("a pod afterwards", func() error { return s.isReady("next") })
	s.eventually("the lock, anew", func() error { return held(bus, 1) })
}

// onBus restarts the kubelet so that it watches for shutdowns on a bus of the test's own, until the test ends.
func (s *subject) onBus(t *testing.T) *logind.Logind {
	t.Helper()
	dir := filepath.Join(s.dir, "bus")
	bus, err := logind.New(logind.Options{Dir: dir, Delay: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	name, value := bus.Env()
	s.env = []string{name + "=" + value}
	s.rewrite(t, s.config()+"shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 20s\n")
	t.Cleanup(func() {
		s.env = nil
		s.rewrite(t, s.config())
		times := filepath.Join(s.dir, "root", "graceful_node_shutdown_state") // which stays on purpose
		if err := errors.Join(bus.Close(), os.RemoveAll(dir), os.Remove(times)); err != nil {
			t.Error(err)
		}
	})
	return bus
}

// rewrite restarts the kubelet with another configuration.
func (s *subject) rewrite(t *testing.T, config string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "config.yaml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.restart(); err != nil {
		t.Fatal(err)
	}
}

func held(bus *logind.Logind, want int) error {
	if n := bus.Held(); n != want {
		return fmt.Errorf("%d locks are held", n)
	}
	return nil
}

func (s *space) isReady(name string) error {
	if !ready(s.pod(name)) {
		return errors.New("it is not ready")
	}
	return nil
}

func (s *space) phase(name string, want v1.PodPhase) error {
	if is := s.pod(name).Status.Phase; is != want {
		return fmt.Errorf("phase %s", is)
	}
	return nil
}

func (s *space) nodeReady() v1.NodeCondition {
	s.Helper()
	n, err := control.Client.CoreV1().Nodes().Get(s.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == v1.NodeReady {
			return c
		}
	}
	s.Fatal("the node has no condition Ready")
	return v1.NodeCondition{}
}
