package kubelet

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestRestartAllContainers: one container's exit code has all of its pod start anew in place, init containers first (KEP-5532).
func TestRestartAllContainers(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: team}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: prepare, image: IMAGE, command: [sh, -c, "echo prepared >> /w/log"], volumeMounts: [{name: w, mountPath: /w}]}
  containers:
  - name: leader
    image: IMAGE
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]
    command: [sh, -c, "echo led >> /w/log; sleep 2; [ $(grep -c led /w/log) = 1 ] && exit 42; sleep 1000"]
    volumeMounts: [{name: w, mountPath: /w}]
  - {name: follower, image: IMAGE, command: [sh, -c, "echo followed >> /w/log; sleep 1000"], volumeMounts: [{name: w, mountPath: /w}]}
  volumes: [{name: w, emptyDir: {}}]
`)
	first := s.waitPod("team", "running", func(p *v1.Pod) bool { return ready(p) })
	p := s.waitPod("team", "restarted", func(p *v1.Pod) bool {
		return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[1].RestartCount == 1
	})
	if p.Status.PodIP != first.Status.PodIP || p.Status.InitContainerStatuses[0].RestartCount != 1 {
		t.Errorf("address %s before and %s after, the init container was restarted %d times", first.Status.PodIP, p.Status.PodIP, p.Status.InitContainerStatuses[0].RestartCount)
	}
	log := s.kubectl("exec", "team", "-c", "leader", "--", "cat", "/w/log")
	if rounds := strings.Split(log, "prepared\n"); len(rounds) != 3 || strings.Count(rounds[1], "\n") != 2 || strings.Count(rounds[2], "\n") != 2 {
		t.Errorf("what ran is\n%s", log)
	}
	s.waitPod("team", "settled", func(p *v1.Pod) bool {
		c := condition(p, v1.AllContainersRestarting)
		return c != nil && c.Status == v1.ConditionFalse
	})
}
