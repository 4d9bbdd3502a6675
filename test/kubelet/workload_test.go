package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: IMAGE
        command: [sh, -c, "mkdir -p /www; echo $VERSION > /www/index.html; exec busybox httpd -f -p 8080 -h /www"]
        env: [{name: VERSION, value: "VALUE"}]
        ports: [{name: http, containerPort: 8080}]
        startupProbe: {tcpSocket: {port: http}, periodSeconds: 1, failureThreshold: 30}
        livenessProbe: {exec: {command: [test, -e, /www/index.html]}, periodSeconds: 1}
        readinessProbe: {httpGet: {path: /index.html, port: http}, periodSeconds: 1}
`

// TestDeployment rolls a deployment out, on to another version, and back.
func TestDeployment(t *testing.T) {
	s := begin(t)
	for _, version := range []string{"one", "two"} {
		s.apply(strings.ReplaceAll(deployment, "VALUE", version))
		s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
		s.serves("app=web", version)
	}
	s.kubectl("rollout", "undo", "deployment/web")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	s.serves("app=web", "one")
}

// serves checks that all pods that do not end answer with a text.
func (s *space) serves(selector, want string) {
	s.Helper()
	s.eventually("all pods to answer "+want, func() error {
		for _, p := range s.pods(selector) {
			if p.DeletionTimestamp != nil {
				continue
			}
			got, err := s.tryKubectl("", "exec", p.Name, "--", "wget", "-qO-", "http://127.0.0.1:8080/")
			if err != nil {
				return err
			}
			if strings.TrimSpace(got) != want {
				return fmt.Errorf("%s answers %q", p.Name, got)
			}
		}
		return nil
	})
}

// TestJob completes with one failure on the way.
func TestJob(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  completions: 2
  parallelism: 2
  template:
    spec:
      restartPolicy: OnFailure
      containers:
      - name: sum
        image: IMAGE
        command: [sh, -c, "test -e /job/tried || { touch /job/tried; exit 3; }; echo done"]
        volumeMounts: [{name: work, mountPath: /job}]
      volumes: [{name: work, emptyDir: {}}]
`)
	var job *batchv1.Job
	s.eventually("the job to complete", func() (err error) {
		if job, err = control.Client.BatchV1().Jobs(s.name).Get(s.Context(), "sum", metav1.GetOptions{}); err != nil {
			return err
		}
		if job.Status.Succeeded != 2 {
			return fmt.Errorf("%d succeeded", job.Status.Succeeded)
		}
		return nil
	})
	for _, p := range s.pods("job-name=sum") {
		c := p.Status.ContainerStatuses[0]
		if p.Status.Phase != v1.PodSucceeded || c.RestartCount != 1 || c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 {
			t.Errorf("pod %s: phase %s, container %+v", p.Name, p.Status.Phase, c)
		}
		if c := condition(&p, v1.PodReady); c == nil || c.Reason != "PodCompleted" {
			t.Errorf("pod %s: Ready is %+v", p.Name, c)
		}
	}
}

// TestCronJob starts a pod within a minute.
func TestCronJob(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: tick, image: IMAGE, command: [echo, tick]}]
`)
	s.within(2*patience, "a run of the cron job", func() error {
		list, err := control.Client.BatchV1().Jobs(s.name).List(s.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, j := range list.Items {
			if j.Status.Succeeded > 0 {
				return nil
			}
		}
		return fmt.Errorf("none of %d jobs succeeded", len(list.Items))
	})
}

// TestDaemonSet runs on the node, also with its taints.
func TestDaemonSet(t *testing.T) {
	s := begin(t)
	s.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      hostNetwork: true
      hostPID: true
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
      - {name: agent, image: IMAGE, command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"], securityContext: {privileged: true}}
`)
	s.kubectl("rollout", "status", "daemonset/agent", "--timeout=60s")
	p := s.pods("app=agent")[0]
	if p.Status.PodIP != p.Status.HostIP || p.Status.PodIP == "" {
		t.Errorf("pod IP %q, host IP %q", p.Status.PodIP, p.Status.HostIP)
	}
	if got := s.kubectl("exec", p.Name, "--", "cat", "/proc/1/comm"); strings.TrimSpace(got) == "sh" {
		t.Error("the container does not see the node's processes")
	}
}

// TestStatefulSet keeps its data when its pod is replaced.
func TestStatefulSet(t *testing.T) {
	s := begin(t)
	dir := filepath.Join(node.dir, "data-"+s.name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir); s.tryKubectl("", "delete", "pv", s.name) }) //nolint:errcheck // the cluster ends anyhow
	s.apply(strings.NewReplacer("SPACE", s.name, "DIR", dir).Replace(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: SPACE}
spec:
  storageClassName: SPACE
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  local: {path: DIR}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsUser: 1000, fsGroup: 2000}
      containers:
      - name: db
        image: IMAGE
        command: [sh, -c, "date +%s%N >> /data/starts; trap exit TERM; while :; do sleep 0.1; done"]
        readinessProbe: {exec: {command: [test, -s, /data/starts]}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {storageClassName: SPACE, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`))
	first := s.waitPod("db-0", "ready", ready)
	s.kubectl("delete", "pod", "db-0")
	second := s.waitPod("db-0", "ready again", func(p *v1.Pod) bool { return p.UID != first.UID && ready(p) })
	data, err := os.ReadFile(filepath.Join(dir, "starts"))
	if err != nil || strings.Count(string(data), "\n") != 2 {
		t.Errorf("after two starts (second: %s) the volume has %q, %v", second.UID, data, err)
	}
}

// TestStaticPod has a mirror, which comes back when it is deleted, and goes with its manifest.
func TestStaticPod(t *testing.T) {
	s := begin(t)
	name := "static-" + s.name
	manifest := strings.NewReplacer("NAME", name, "SPACE", s.name, "IMAGE", image).Replace(`
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: SPACE}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: IMAGE, command: [sh, -c, "trap exit TERM; while :; do sleep 0.1; done"]}]
`)
	file := filepath.Join(node.manifests(), name+".yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(file) })
	mirror := s.waitPod(name+"-"+nodeName, "ready", ready)
	id := mirror.Status.ContainerStatuses[0].ContainerID
	s.kubectl("delete", "pod", mirror.Name, "--grace-period=0", "--force")
	var again *v1.Pod
	s.within(2*patience, "the mirror to be made again", func() (err error) {
		again, err = control.Client.CoreV1().Pods(s.name).Get(s.Context(), mirror.Name, metav1.GetOptions{})
		if err == nil && (again.UID == mirror.UID || !ready(again)) {
			err = fmt.Errorf("UID %s, phase %s", again.UID, again.Status.Phase)
		}
		return err
	})
	if got := again.Status.ContainerStatuses[0].ContainerID; got != id {
		t.Errorf("deleting the mirror replaced container %s by %s", id, got)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(manifest, "sleep 0.1", "sleep 0.2", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	s.waitPod(mirror.Name, "replaced", func(p *v1.Pod) bool {
		return ready(p) && p.Status.ContainerStatuses[0].ContainerID != id
	})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.eventually("the mirror to go", gone(s, mirror.Name))
}
