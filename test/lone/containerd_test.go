package lone

import (
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestProbesRestart restarts a container whose liveness probe fails, and counts.
func TestProbesRestart(t *testing.T) {
	t.Parallel()
	restarted(first.begin(t))
}

func restarted(p *play) {
	p.write("sick.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: sick, namespace: SPACE}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "touch /tmp/well; trap exit TERM; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [test, -e, /tmp/well]}, periodSeconds: 1}
    readinessProbe: {exec: {command: [test, "!", -e, /tmp/busy]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, failureThreshold: 1}
`)
	p.waitPod("sick", "ready", ready)
	if _, err := p.exec("sick", "main", "touch", "/tmp/busy"); err != nil {
		p.Fatal(err)
	}
	p.waitPod("sick", "busy", func(pod *v1.Pod) bool { return !ready(pod) && pod.Status.ContainerStatuses[0].State.Running != nil })
	if _, err := p.exec("sick", "main", "rm", "/tmp/well", "/tmp/busy"); err != nil {
		p.Fatal(err)
	}
	p.waitPod("sick", "restarted", func(pod *v1.Pod) bool { return pod.Status.ContainerStatuses[0].RestartCount == 1 && ready(pod) })
	p.logged("Unhealthy", p.space+"/sick", "Liveness probe failed")
	p.logged("Killing", p.space+"/sick", "failed liveness probe, will be restarted")
}

// TestContainerd: the shim is the same over another runtime.
func TestContainerd(t *testing.T) {
	t.Parallel()
	engine := containerd(t, filepath.Join(base, "c"))
	s := another(t, standOptions{engine: engine, dir: filepath.Join(base, "nc"), port: 10270})
	for _, c := range []struct {
		name string
		test func(p *play)
	}{{"Manifests", manifests}, {"Probes", restarted}, {"Killed", killed}} {
		t.Run(c.name, func(t *testing.T) { c.test(s.begin(t)) })
	}
}
