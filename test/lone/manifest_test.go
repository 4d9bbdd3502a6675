package lone

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// shop is what a lone machine may serve: objects and the pod that uses them in one file, its claim in another.
const shop = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: SPACE}
data: {color: blue, index.html: "open\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: SPACE}
stringData: {door: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: shop, namespace: SPACE, labels: {app: shop}}
spec:
  terminationGracePeriodSeconds: 2
  initContainers:
  - name: prepare
    image: IMAGE
    command: [sh, -c, "echo $COLOR >> /data/starts"]
    env: [{name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}]
    volumeMounts: [{name: data, mountPath: /data}]
  containers:
  - name: web
    image: IMAGE
    command: [sh, -c, "echo door=$DOOR $(cat /data/starts); trap exit TERM; busybox httpd -p 8080 -h /www; while :; do sleep 0.1; done"]
    env: [{name: DOOR, valueFrom: {secretKeyRef: {name: keys, key: door}}}]
    readinessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 1}
    livenessProbe: {exec: {command: [cat, /data/starts]}, periodSeconds: 1}
    volumeMounts: [{name: data, mountPath: /data}, {name: www, mountPath: /www}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: www, configMap: {name: settings}}
`

const claim = `{"kind": "List", "apiVersion": "v1", "items": [
  {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "SPACE"},
   "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "DIR", "type": "Directory"}}},
  {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "SPACE"},
   "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": "SPACE", "resources": {"requests": {"storage": "1Gi"}}}}]}
`

// TestManifests: a directory of manifests is enough for a pod with settings, secrets and a volume that keeps its data; changes
// of what it refers to are seen inside, a changed pod is another one, and a removed one goes.
func TestManifests(t *testing.T) {
	t.Parallel()
	manifests(first.begin(t))
}

func manifests(p *play) {
	data := p.TempDir()
	p.write("a-claim.json", strings.ReplaceAll(claim, "DIR", data))
	p.write("shop.yaml", shop)
	old := p.waitPod("shop", "ready", ready)
	p.log("shop", "web", "door=sesame blue\n")
	if got, err := p.exec("shop", "web", "cat", "/www/color"); err != nil || got != "blue" {
		p.Errorf("inside: %q, %v", got, err)
	}
	p.write("shop.yaml", strings.ReplaceAll(shop, "color: blue", "color: red"))
	p.eventually("the changed config map inside", func() error {
		got, err := p.exec("shop", "web", "cat", "/www/color")
		if err == nil && got != "red" {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
	if now := p.waitPod("shop", "ready", ready); now.UID != old.UID || now.Status.ContainerStatuses[0].ContainerID != old.Status.ContainerStatuses[0].ContainerID {
		p.Errorf("a change of the config map made another pod: %s, %s", old.UID, now.UID)
	}
	p.write("shop.yaml", strings.NewReplacer("color: blue", "color: red", "door=$DOOR", "new=$DOOR").Replace(shop))
	p.waitPod("shop", "another", func(now *v1.Pod) bool { return now.UID != old.UID && ready(now) })
	p.log("shop", "web", "new=sesame blue red\n")
	p.remove("shop.yaml")
	p.gone("shop")
	if left, err := os.ReadDir(filepath.Join(p.shim.Root(), "pods", string(old.UID))); err == nil {
		p.Errorf("the first pod's directory is still there, with %v", left)
	}
	if starts, err := os.ReadFile(filepath.Join(data, "starts")); err != nil || string(starts) != "blue\nred\n" {
		p.Errorf("the volume has %q, %v", starts, err)
	}
}

// TestPullSecret: a secret of the directory opens a registry that wants a password, and only to pods that name it.
func TestPullSecret(t *testing.T) {
	t.Parallel()
	p := first.begin(t)
	p.write("secret.yaml", fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: registry, namespace: SPACE}
type: kubernetes.io/dockerconfigjson
stringData: {.dockerconfigjson: '{"auths": {"%s": {"username": "ann", "password": "sesame"}}}'}
`, locked.Host))
	const pod = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: SPACE}
spec:
  terminationGracePeriodSeconds: 1
  imagePullSecrets: [SECRET]
  containers: [{name: main, image: SECLUDED, imagePullPolicy: Always}]
`
	p.write("refused.yaml", strings.NewReplacer("NAME", "refused", "SECRET", "").Replace(pod))
	p.waitPod("refused", "refused", func(pod *v1.Pod) bool {
		return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Waiting != nil &&
			pod.Status.ContainerStatuses[0].State.Waiting.Reason == "ImagePullBackOff"
	})
	p.logged("Failed", p.space+"/refused", "ErrImagePull")
	p.write("served.yaml", strings.NewReplacer("NAME", "served", "SECRET", "{name: registry}").Replace(pod))
	p.waitPod("served", "ready", ready)
}

const plain = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: SPACE}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: IMAGE}]
`

// TestBrokenManifests: what can't be used is named in the log, with what is wrong; the pods of other files go on, and so do
// those that the file had before.
func TestBrokenManifests(t *testing.T) {
	t.Parallel()
	p := first.begin(t)
	p.write("good.yaml", strings.ReplaceAll(plain, "NAME", "good"))
	p.write("edited.yaml", strings.ReplaceAll(plain, "NAME", "edited"))
	p.waitPod("good", "ready", ready)
	p.waitPod("edited", "ready", ready)
	before := p.containers()
	p.write("edited.yaml", "kind: Pod\nmetadata: {name: edited\n")
	p.logged("manifest not used", p.file("edited.yaml"), "yaml: line")
	p.write("invalid.yaml", strings.ReplaceAll(plain, "NAME", "Not_a_name"))
	p.logged("manifest not used", p.file("invalid.yaml"), "metadata.name", "Not_a_name")
	p.write("twice.yaml", strings.ReplaceAll(plain, "NAME", "twin")+"---"+strings.ReplaceAll(plain, "NAME", "twin"))
	p.logged("manifest not used", p.file("twice.yaml"), "twin", "is there twice")
	p.write("lacking.yaml", strings.ReplaceAll(strings.ReplaceAll(plain, "NAME", "lacking"), "image: IMAGE", "image: IMAGE, envFrom: [{configMapRef: {name: absent}}]"))
	p.waitPod("lacking", "waiting", func(pod *v1.Pod) bool {
		return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Waiting != nil &&
			strings.Contains(pod.Status.ContainerStatuses[0].State.Waiting.Message, "absent")
	})
	p.logged("Failed", p.space+"/lacking", "absent")
	p.write("late.yaml", "kind: ConfigMap\nmetadata: {name: absent, namespace: SPACE}\n")
	p.waitPod("lacking", "ready", ready)
	for name, id := range p.containers() {
		if was := before[name]; was != "" && was != id {
			p.Errorf("%s was %s and is %s", name, was, id)
		}
	}
	if _, err := p.find(p.space, "edited"); err != nil {
		p.Errorf("the pod of a file with a slip: %v", err)
	}
	p.write("edited.yaml", strings.ReplaceAll(plain, "NAME", "other"))
	p.waitPod("other", "ready", ready)
	p.gone("edited")
}

// TestShimKilled: no container restarts because the shim was killed, restarts are remembered, and what changed meanwhile is
// done when it is back.
func TestShimKilled(t *testing.T) { killed(first.begin(t)) } // not beside other tests

func killed(p *play) {
	p.write("steady.yaml", strings.ReplaceAll(shop, "persistentVolumeClaim: {claimName: data}", "emptyDir: {}"))
	p.write("leaves.yaml", strings.ReplaceAll(plain, "NAME", "leaves"))
	p.write("crash.yaml", strings.NewReplacer("NAME", "crash", "image: IMAGE", `image: IMAGE, command: [sh, -c, "exit 3"]`).Replace(plain))
	steady := p.waitPod("shop", "ready", ready)
	p.waitPod("leaves", "ready", ready)
	crashed := p.waitPod("crash", "restarted", func(pod *v1.Pod) bool {
		return len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].RestartCount >= 1
	})
	for range 3 {
		if err := p.shim.Kill(); err != nil {
			p.Fatal(err)
		}
		if err := p.shim.Start(p.Context()); err != nil {
			p.Fatal(err)
		}
	}
	if err := p.shim.Kill(); err != nil {
		p.Fatal(err)
	}
	p.remove("leaves.yaml")
	p.write("comes.yaml", strings.ReplaceAll(plain, "NAME", "comes"))
	if err := p.shim.Start(p.Context()); err != nil {
		p.Fatal(err)
	}
	p.waitPod("comes", "ready", ready)
	p.gone("leaves")
	now := p.waitPod("shop", "ready", ready)
	was, is := steady.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]
	if was.ContainerID != is.ContainerID || is.RestartCount != 0 || now.UID != steady.UID {
		p.Errorf("was %s of %s and is %s of %s, %d restarts", was.ContainerID, steady.UID, is.ContainerID, now.UID, is.RestartCount)
	}
	p.waitPod("crash", "remembered", func(pod *v1.Pod) bool {
		c := pod.Status.ContainerStatuses
		return len(c) == 1 && c[0].RestartCount >= crashed.Status.ContainerStatuses[0].RestartCount &&
			c[0].LastTerminationState.Terminated != nil && c[0].LastTerminationState.Terminated.ExitCode == 3
	})
}

// errNot says that something is not as it should be yet.
var errNot = errors.New("not yet")
