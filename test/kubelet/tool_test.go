package kubelet

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestKubectl uses what people use to look into pods.
func TestKubectl(t *testing.T) {
	s := begin(t)
	s.apply(strings.ReplaceAll(strings.ReplaceAll(deployment, "VALUE", "here"), "replicas: 2", "replicas: 1"))
	s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	name := s.pods("app=web")[0].Name

	if got, err := s.tryKubectl("to be echoed", "exec", "-i", name, "--", "cat"); err != nil || got != "to be echoed" {
		t.Errorf("exec -i: %q, %v", got, err)
	}
	if _, err := s.tryKubectl("", "exec", name, "--", "sh", "-c", "exit 5"); err == nil || !strings.Contains(err.Error(), "exit code 5") {
		t.Errorf("exec of what fails: %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("copied\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.kubectl("cp", file, name+":/tmp/f")
	s.kubectl("cp", name+":/tmp/f", file+"2")
	if data, err := os.ReadFile(file + "2"); err != nil || string(data) != "copied\n" {
		t.Errorf("cp there and back: %q, %v", data, err)
	}
	s.forward(name)
	if out := s.kubectl("describe", "pod", name); !strings.Contains(out, "Started") || !strings.Contains(out, "Liveness:") {
		t.Errorf("describe pod: %s", out)
	}
	if out := s.kubectl("get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/stats/summary"); !strings.Contains(out, name) {
		t.Errorf("stats/summary has no %s: %.500s", name, out)
	}
	if out := s.kubectl("get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/metrics/resource"); !strings.Contains(out, `pod="`+name+`"`) {
		t.Errorf("metrics/resource has no %s: %.500s", name, out)
	}
}

// forward fetches the pod's page through kubectl port-forward.
func (s *space) forward(pod string) {
	s.Helper()
	cmd := s.command(s.Context(), "port-forward", pod, ":8080")
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	found := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindStringSubmatch(line)
	if err != nil || found == nil {
		s.Fatalf("port-forward says %q, %v", line, err)
	}
	resp, err := http.Get("http://127.0.0.1:" + found[1] + "/")
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "here\n" {
		s.Errorf("port-forward: %q, %v", body, err)
	}
}

// TestUpdateInPlace shows a changed config map inside a running pod.
func TestUpdateInPlace(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: live}
data: {text: before}
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]
    volumeMounts: [{name: live, mountPath: /live}]
  volumes: [{name: live, configMap: {name: live}}]
`)
	s.waitPod("reader", "ready", ready)
	s.kubectl("patch", "configmap", "live", "-p", `{"data":{"text":"after"}}`)
	s.within(2*patience, "the change to be seen inside", func() error {
		got, err := s.tryKubectl("", "exec", "reader", "--", "cat", "/live/text")
		if err == nil && got != "after" {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

// TestNode looks at what the node says of itself.
func TestNode(t *testing.T) {
	s := begin(t)
	out := s.kubectl("describe", "node", nodeName)
	for _, want := range []string{
		"KubeletReady", "KubeletHasSufficientMemory", "KubeletHasNoDiskPressure", "KubeletHasSufficientPID", "InternalIP:  172.31.99.1",
		"Hostname:    node", "Container Runtime Version:  orlop://", "kubernetes.io/hostname=node", "ephemeral-storage:", "Lease:",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("describe node has no %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// TestDebugContainer joins a running pod and sees its processes.
func TestDebugContainer(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: patient}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: IMAGE, command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]}]
`)
	s.waitPod("patient", "ready", ready)
	s.kubectl("debug", "patient", "--image="+image, "--target=main", "-c", "debugger", "--", "sh", "-c", "cat /proc/1/cmdline")
	s.waitPod("patient", "looked at", func(p *v1.Pod) bool {
		return len(p.Status.EphemeralContainerStatuses) == 1 && p.Status.EphemeralContainerStatuses[0].State.Terminated != nil
	})
	if out := s.kubectl("logs", "patient", "-c", "debugger"); !strings.Contains(out, "trap exit") {
		t.Errorf("the debugger sees %q as process 1", out)
	}
}

// TestResize changes the resources of a running container in place, and waits for what the node can't give yet.
func TestResize(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: grows}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]
    resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 100m, memory: 64Mi}}
`)
	p := s.waitPod("grows", "ready", ready)
	id := p.Status.ContainerStatuses[0].ContainerID
	resize := func(requestCPU, limitCPU, memory string) {
		s.kubectl("patch", "pod", "grows", "--subresource", "resize", "-p", fmt.Sprintf(
			`{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":%q},"limits":{"cpu":%q,"memory":%q}}}]}}`, requestCPU, limitCPU, memory))
	}
	resize("60m", "200m", "128Mi")
	p = s.waitPod("grows", "resized", func(p *v1.Pod) bool {
		c := p.Status.ContainerStatuses[0]
		return c.Resources != nil && c.Resources.Limits.Cpu().String() == "200m" && c.Resources.Limits.Memory().String() == "128Mi" &&
			condition(p, v1.PodResizeInProgress) == nil
	})
	if c := p.Status.ContainerStatuses[0]; c.ContainerID != id || c.RestartCount != 0 {
		t.Errorf("the container was %s and is %s, %d restarts", id, c.ContainerID, c.RestartCount)
	}
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: blocks}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: IMAGE, command: [sleep, "1000"], resources: {requests: {cpu: 900m}}}]
`)
	s.waitPod("blocks", "ready", ready)
	resize("1500m", "1500m", "128Mi")
	s.waitPod("grows", "told to wait", func(p *v1.Pod) bool {
		c := condition(p, v1.PodResizePending)
		return c != nil && c.Reason == v1.PodReasonDeferred
	})
	for _, reason := range []string{"ResizeStarted", "ResizeCompleted", "ResizeDeferred"} {
		s.event("grows", reason)
	}
	s.kubectl("exec", "grows", "--", "sh", "-c", "kill 1") // what is started meanwhile gets what the pod holds
	p = s.waitPod("grows", "restarted", func(p *v1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount == 1 && ready(p) })
	c := p.Status.ContainerStatuses[0]
	if c.AllocatedResources.Cpu().String() != "60m" || c.Resources.Requests.Cpu().String() != "60m" || c.Resources.Limits.Cpu().String() != "200m" {
		t.Errorf("while it waits, it holds %v and has %v", c.AllocatedResources, c.Resources)
	}
	s.kubectl("delete", "pod", "blocks")
	s.within(2*patience, "the resize that waited", func() error {
		p := s.pod("grows")
		if got := p.Status.ContainerStatuses[0].Resources.Limits.Cpu().String(); got != "1500m" || condition(p, v1.PodResizePending) != nil {
			return fmt.Errorf("limit %s, %v", got, condition(p, v1.PodResizePending))
		}
		return nil
	})
}
