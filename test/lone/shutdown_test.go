package lone

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/logind"
)

// lasting is a pod that writes into a file when it was asked to end, and when it ends a second later.
const lasting = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: SPACE}
spec:
  priorityClassName: CLASS
  terminationGracePeriodSeconds: 60
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap 'echo NAME asked >> /ends/file; sleep 1; echo NAME ended >> /ends/file; exit' TERM; touch /up; while :; do sleep 0.1; done"]
    readinessProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1}
    volumeMounts: [{name: ends, mountPath: /ends}]
  volumes: [{name: ends, hostPath: {path: DIR}}]
`

// deaf is a pod that does not end when it is asked to.
const deaf = `
apiVersion: v1
kind: Pod
metadata: {name: deaf, namespace: SPACE}
spec:
  terminationGracePeriodSeconds: 8
  containers: [{name: main, image: IMAGE, command: [sh, -c, "trap '' TERM; while :; do sleep 0.1; done"]}]
`

// TestShutdown: before the machine goes off, pods end in the order of their priority and within the time of their group, and
// no new ones begin; the lock is held until then. When the shutdown is cancelled, all run again.
func TestShutdown(t *testing.T) {
	t.Parallel()
	kernel.Require(t, kernel.Command("dbus-daemon"))
	bus, err := logind.New(logind.Options{Dir: filepath.Join(base, "b"), Delay: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bus.Close(); err != nil {
			t.Error(err)
		}
	})
	engine, err := orlop(t.Context(), filepath.Join(base, "d3"), 3)
	if err != nil {
		t.Fatal(err)
	}
	name, value := bus.Env()
	own := another(t, standOptions{engine: engine, dir: filepath.Join(base, "n3"), port: 10280, env: []string{name + "=" + value},
		settings: gentle + "shutdownGracePeriod: 24s\nshutdownGracePeriodCriticalPods: 20s\n"})
	p := own.begin(t)
	ends := filepath.Join(t.TempDir(), "file")
	for name, class := range map[string]string{"plain": `""`, "critical": "system-node-critical"} {
		p.write(name+".yaml", strings.NewReplacer("NAME", name, "CLASS", class, "DIR", filepath.Dir(ends)).Replace(lasting))
	}
	p.write("deaf.yaml", deaf)
	names := []string{"plain", "critical", "deaf"}
	before := map[string]string{}
	for _, name := range names {
		before[name] = p.waitPod(name, "ready", ready).Status.ContainerStatuses[0].ContainerID
	}
	p.eventually("the lock", func() error {
		if n := bus.Held(); n != 1 {
			return fmt.Errorf("%d locks are held", n)
		}
		return nil
	})

	took, err := bus.Shutdown()
	if err != nil {
		t.Fatal(err)
	}
	if took < 4*time.Second { // the deaf pod takes all of its group's time
		t.Errorf("the shutdown waited %s", took)
	}
	if text, err := os.ReadFile(ends); err != nil || string(text) != "plain asked\nplain ended\ncritical asked\ncritical ended\n" {
		t.Errorf("when the lock was closed, it had gone\n%s%v", text, err)
	}
	for _, name := range names {
		s := p.waitPod(name, "Failed", func(pod *v1.Pod) bool { return pod.Status.Phase == v1.PodFailed }).Status
		if s.Reason != "Terminated" || s.Message != "Pod was terminated in response to imminent node shutdown." || !disrupted(s) || ready(&v1.Pod{Status: s}) {
			t.Errorf("%s: %+v", name, s)
		}
		if end := s.ContainerStatuses[0].State.Terminated; end == nil || (end.ExitCode == 0) != (name != "deaf") {
			t.Errorf("%s: %+v", name, s.ContainerStatuses[0])
		}
	}
	p.write("late.yaml", strings.NewReplacer("name: deaf", "name: late").Replace(deaf))
	late := p.waitPod("late", "refused", func(pod *v1.Pod) bool { return pod.Status.Phase == v1.PodFailed }).Status
	if late.Reason != "NodeShutdown" || late.Message != "Pod was rejected: Pod was rejected as the node is shutting down." {
		t.Errorf("late: %+v", late)
	}
	for line := range strings.Lines(p.get("/metrics")) {
		if strings.HasPrefix(line, "kubelet_graceful_shutdown_") && strings.HasSuffix(line, " 0\n") {
			t.Error(line)
		}
	}

	if err := bus.Prepare(false); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names, "late") {
		s := p.waitPod(name, "ready again", func(pod *v1.Pod) bool { return ready(pod) }).Status
		if s.ContainerStatuses[0].ContainerID == before[name] || s.Phase != v1.PodRunning || s.Reason != "" || disrupted(s) {
			t.Errorf("%s: %+v", name, s)
		}
	}
	p.eventually("the lock, anew", func() error {
		if bus.Held() != 1 {
			return errors.New("none is held")
		}
		return nil
	})
}

func disrupted(s v1.PodStatus) bool {
	for _, c := range s.Conditions {
		if c.Type == v1.DisruptionTarget && c.Status == v1.ConditionTrue && c.Reason == v1.PodReasonTerminationByKubelet {
			return true
		}
	}
	return false
}
