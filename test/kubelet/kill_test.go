package kubelet

import (
	"fmt"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/test/daemon"
)

// The tests of this file kill what all tests share, so they run one after the other, before the parallel ones.

func alone(t *testing.T) *space {
	t.Helper()
	s := &space{t, "alone-" + fmt.Sprint(time.Now().UnixNano())}
	ns := &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name}}
	if _, err := control.Client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	s.eventually("the default service account", func() error {
		_, err := control.Client.CoreV1().ServiceAccounts(s.name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return s
}

const steady = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: steady}
spec:
  replicas: 3
  selector: {matchLabels: {app: steady}}
  template:
    metadata: {labels: {app: steady}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: IMAGE
        command: [sh, -c, "trap exit TERM; touch /tmp/ok; while :; do sleep 0.1; done"]
        livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 3}
        readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1}
        resources: {requests: {cpu: 10m, memory: 8Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: IMAGE, command: [sh, -c, "exit 1"]}]
`

// containerIDs are those of the containers of all pods that a selector finds.
func (s *space) containerIDs(selector string) map[string]string {
	s.Helper()
	ids := map[string]string{}
	for _, p := range s.pods(selector) {
		for _, c := range p.Status.ContainerStatuses {
			ids[p.Name+"/"+c.Name] = c.ContainerID
		}
	}
	return ids
}

func (s *space) allReady(selector string, count int) {
	s.Helper()
	s.eventually("all pods to be ready", func() error {
		list := s.pods(selector)
		if len(list) != count {
			return fmt.Errorf("there are %d", len(list))
		}
		for i := range list {
			if !ready(&list[i]) {
				return fmt.Errorf("%s is not", list[i].Name)
			}
		}
		return nil
	})
}

const finished = `
apiVersion: v1
kind: Pod
metadata: {name: finished}
spec:
  restartPolicy: Never
  containers: [{name: main, image: IMAGE, command: ["true"]}]
`

// TestKubeletKilled: no container restarts because the kubelet did, no restart is forgotten, readiness does not flicker, and
// a pod that has ended stays so even if the runtime has forgotten it.
func TestKubeletKilled(t *testing.T) {
	s := alone(t)
	s.apply(steady)
	s.allReady("app=steady", 3)
	crashed := s.waitPod("crash", "restarted", func(p *v1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount >= 1
	})
	s.apply(finished)
	s.waitPod("finished", "done", phase(v1.PodSucceeded))
	if err := node.forget(s.Context(), s.name, "finished"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // a new kubelet begins with what the API server's cache has, which may be a moment behind
	before := s.containerIDs("app=steady")
	times := s.readySince("app=steady")
	for range 3 {
		if err := node.restart(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // let it be in the middle of its start
	}
	s.kubectl("annotate", "pod", "-l", "app=steady", "looked=again")
	time.Sleep(3 * time.Second) // probes and statuses have come round
	for name, id := range s.containerIDs("app=steady") {
		if before[name] != id {
			t.Errorf("%s was %s and is %s", name, before[name], id)
		}
	}
	for name, since := range s.readySince("app=steady") {
		if times[name] != since {
			t.Errorf("%s: ready since %s before and since %s after", name, times[name], since)
		}
	}
	if p := s.pod("finished"); p.Status.Phase != v1.PodSucceeded || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("a pod that had succeeded: %s, %+v", p.Status.Phase, p.Status.ContainerStatuses[0])
	}
	if list, err := node.list(s.Context(), s.name, "finished"); err != nil || len(list) > 0 {
		t.Errorf("a pod that had succeeded was run again: %v, %v", list, err)
	}
	after := s.pod("crash").Status.ContainerStatuses[0].RestartCount
	if had := crashed.Status.ContainerStatuses[0].RestartCount; after < had {
		t.Errorf("restart count fell from %d to %d", had, after)
	}
}

func (s *space) readySince(selector string) map[string]time.Time {
	out := map[string]time.Time{}
	for _, p := range s.pods(selector) {
		if c := condition(&p, v1.PodReady); c != nil && c.Status == v1.ConditionTrue {
			out[p.Name] = c.LastTransitionTime.Time
		}
	}
	return out
}

// TestDeletedWhileKubeletWasAway: pods that are deleted, and pods that vanish, while it is away end when it comes back.
func TestDeletedWhileKubeletWasAway(t *testing.T) {
	s := alone(t)
	s.apply(steady)
	s.allReady("app=steady", 3)
	if err := control.Kill(logName); err != nil {
		t.Fatal(err)
	}
	s.kubectl("delete", "deployment", "steady", "--wait=false")
	s.kubectl("delete", "pod", "crash", "--force", "--grace-period=0")
	if err := node.start(); err != nil {
		t.Fatal(err)
	}
	s.eventually("the pods to be gone", func() error {
		if n := len(s.pods("app=steady")); n > 0 {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
	s.eventually("the runtime to have nothing of them", func() error {
		list, err := node.list(s.Context(), s.name, "")
		if err == nil && len(list) > 0 {
			err = fmt.Errorf("it has %d sandboxes", len(list))
		}
		return err
	})
}

// TestRuntimeKilled: containers go on, and so does everything else as soon as the runtime is back.
func TestRuntimeKilled(t *testing.T) {
	s := alone(t)
	s.apply(steady)
	s.allReady("app=steady", 3)
	before := s.containerIDs("app=steady")
	if err := runtime.Kill(daemon.Serve); err != nil {
		t.Fatal(err)
	}
	s.kubectl("scale", "deployment/steady", "--replicas=4")
	time.Sleep(2 * time.Second) // a runtime that is away for a while
	if err := runtime.Start(s.Context()); err != nil {
		t.Fatal(err)
	}
	s.allReady("app=steady", 4)
	after := s.containerIDs("app=steady")
	for name, id := range before {
		if after[name] != id {
			t.Errorf("%s was %s and is %s", name, id, after[name])
		}
	}
}

// TestAPIServerKilled: pods go on, restart when they crash, and what happened meanwhile is told later.
func TestAPIServerKilled(t *testing.T) {
	s := alone(t)
	s.apply(steady)
	s.allReady("app=steady", 3)
	before := s.containerIDs("app=steady")
	if err := control.Kill("kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	if err := control.StartAPIServer(s.Context()); err != nil {
		t.Fatal(err)
	}
	s.eventually("the deployment to be scaled", func() error {
		_, err := s.tryKubectl("", "scale", "deployment/steady", "--replicas=4")
		return err
	})
	s.allReady("app=steady", 4)
	after := s.containerIDs("app=steady")
	for name, id := range before {
		if after[name] != id {
			t.Errorf("%s was %s and is %s", name, id, after[name])
		}
	}
}
