package kubelet

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// roomy asks for a resource that an administrator gives the node; its scheduler is not asked, and so ends nobody.
const roomy = `
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  nodeName: node
  terminationGracePeriodSeconds: 1
  PRIORITY
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap 'exit 1' TERM; while :; do sleep 0.1; done"]
    resources: {requests: {example.com/room: "COUNT"}, limits: {example.com/room: "COUNT"}}
`

func (s *space) room(name, priority, count string) {
	s.Helper()
	s.apply(strings.NewReplacer("NAME", name, "PRIORITY", priority, "COUNT", count).Replace(roomy))
}

// TestPreemption: a resource that an administrator gives the node is counted, and a pod that took it makes room for a critical
// one, and for no other.
func TestPreemption(t *testing.T) {
	s := begin(t)
	s.room("unknown", "", "7") // no node has it, so it may be the cluster's
	s.waitPod("unknown", "running", phase(v1.PodRunning))
	s.kubectl("delete", "pod", "unknown")

	give := func(patch string) {
		s.kubectl("patch", "node", nodeName, "--subresource=status", "--type=json", "-p", patch)
	}
	give(`[{"op": "add", "path": "/status/capacity/example.com~1room", "value": "2"}]`)
	s.eventually("the room to be allocatable", func() error {
		if got := s.kubectl("get", "node", nodeName, "-o", `jsonpath={.status.allocatable.example\.com/room}`); got != "2" {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	s.room("first", "", "2")
	s.waitPod("first", "running", phase(v1.PodRunning))
	s.room("late", "", "1")
	if p := s.waitPod("late", "refused", phase(v1.PodFailed)); p.Status.Reason != "OutOfexample.com/room" {
		t.Errorf("a pod without room: %s: %s", p.Status.Reason, p.Status.Message)
	}
	s.room("critical", "priorityClassName: system-node-critical", "1")
	s.waitPod("critical", "running", phase(v1.PodRunning))
	p := s.waitPod("first", "ended", phase(v1.PodFailed))
	if c := condition(p, v1.DisruptionTarget); p.Status.Reason != "Preempting" || c == nil || c.Reason != v1.PodReasonTerminationByKubelet {
		t.Errorf("the pod that made room: %s: %s, %+v", p.Status.Reason, p.Status.Message, c)
	}
	s.event("first", "Preempting")
	give(`[{"op": "remove", "path": "/status/capacity/example.com~1room"}]`)
}
