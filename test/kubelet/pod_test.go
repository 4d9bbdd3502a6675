package kubelet

import (
	"errors"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// TestPodRuns follows one pod with init container, sidecar, environment and volumes from its creation to its end.
func TestPodRuns(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: blue, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {door: sesame}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
  annotations: {note: hello}
spec:
  terminationGracePeriodSeconds: 2
  hostAliases: [{ip: 192.0.2.7, hostnames: [elsewhere]}]
  initContainers:
  - name: prepare
    image: IMAGE
    command: [sh, -c, "echo prepared > /job/state"]
    volumeMounts: [{name: work, mountPath: /job}]
  - name: helper
    image: IMAGE
    restartPolicy: Always
    command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]
    startupProbe: {exec: {command: [cat, /job/state]}, periodSeconds: 1}
    volumeMounts: [{name: work, mountPath: /job}]
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c]
    args:
    - |
      trap exit TERM
      cat /job/state; echo "node=$NODE ip=$IP color=$COLOR door=$DOOR cpu=$CPU absent=$ABSENT."; env | grep GREETING
      cat /etc/settings/color; cat /pod/labels; grep elsewhere /etc/hosts; grep cluster.local /etc/resolv.conf
      test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token
      while :; do sleep 0.1; done
    env:
    - {name: WHO, value: world}
    - {name: GREETING, value: "hello $(WHO) $$(WHO) $(NOBODY)"}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: DOOR, valueFrom: {secretKeyRef: {name: keys, key: door}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: ABSENT, valueFrom: {configMapKeyRef: {name: absent, key: x, optional: true}}}
    resources: {requests: {cpu: 20m, memory: 16Mi}, limits: {memory: 64Mi}}
    readinessProbe: {exec: {command: [cat, /job/state]}, periodSeconds: 1}
    volumeMounts:
    - {name: work, mountPath: /job}
    - {name: settings, mountPath: /etc/settings}
    - {name: self, mountPath: /pod}
  volumes:
  - {name: work, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
  - {name: self, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
`)
	p := s.waitPod("web", "ready", ready)
	checkRunning(s, p)
	var log string
	s.eventually("the log", func() (err error) {
		if log, err = s.tryKubectl("", "logs", "web", "-c", "main"); err == nil && !strings.Contains(log, "token") {
			err = errors.New("its last line is not there")
		}
		return err
	})
	for _, want := range []string{
		"prepared\n", "GREETING=hello world $(WHO) $(NOBODY)\n", "absent=.\n", "node=" + nodeName, "ip=" + p.Status.PodIP, "color=blue", "door=sesame", "cpu=20",
		"blueapp=\"web\"", "elsewhere", s.name + ".svc.cluster.local", "token\n",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("log has no %q:\n%s", want, log)
		}
	}
	for _, reason := range []string{"Scheduled", "Pulled", "Created", "Started"} {
		s.event("web", reason)
	}
	began := time.Now()
	s.kubectl("delete", "pod", "web")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("deletion took %s", took)
	}
}

// checkRunning looks at what the API server was told of a running pod.
func checkRunning(s *space, p *v1.Pod) {
	s.Helper()
	if p.Status.Phase != v1.PodRunning || p.Status.PodIP == "" || p.Status.HostIP == "" || p.Status.StartTime == nil || p.Status.QOSClass != v1.PodQOSBurstable {
		s.Errorf("status: phase %s, pod IP %q, host IP %q, start %v, QoS %s", p.Status.Phase, p.Status.PodIP, p.Status.HostIP, p.Status.StartTime, p.Status.QOSClass)
	}
	for _, kind := range []v1.PodConditionType{v1.PodScheduled, v1.PodInitialized, v1.ContainersReady, v1.PodReadyToStartContainers} {
		if !isTrue(p, kind) {
			s.Errorf("condition %s is not true", kind)
		}
	}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if !strings.Contains(c.ContainerID, "://") || c.ImageID == "" || c.RestartCount != 0 {
			s.Errorf("container %s: ID %q, image ID %q, restarts %d", c.Name, c.ContainerID, c.ImageID, c.RestartCount)
		}
	}
	if end := p.Status.InitContainerStatuses[0].State.Terminated; end == nil || end.Reason != "Completed" {
		s.Errorf("init container: %+v", p.Status.InitContainerStatuses[0].State)
	}
}
