package lone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/shim"
)

// patience is how long a test waits for what should take seconds at most.
const patience = 60 * time.Second

// stand is a lone machine: a runtime and the shim.
type stand struct {
	engine *engine
	shim   *shim.Shim
}

type standOptions struct {
	engine   *engine
	dir      string
	port     int
	settings string
	env      []string // of the shim
}

// gentle keeps the machine's own shortages out of the tests.
const gentle = "evictionHard: {memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%, imagefs.inodesFree: 1%}\n"

func newStand(ctx context.Context, o standOptions) (*stand, error) {
	if o.settings == "" {
		o.settings = gentle
	}
	s := &stand{engine: o.engine}
	var err error
	s.shim, err = shim.New(shim.Options{Dir: o.dir, Socket: o.engine.socket, Port: o.port, Systemd: daemon.Systemd(), Settings: o.settings, Env: o.env})
	if err != nil {
		return nil, err
	}
	return s, s.shim.Start(ctx)
}

// another is a stand of the test's own.
func another(t *testing.T, o standOptions) *stand {
	t.Helper()
	s, err := newStand(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the shim's log:\n%s", s.shim.LogTail())
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *stand) close() error {
	err := s.removePods()
	return errors.Join(err, s.shim.Close(), s.engine.close())
}

// removePods takes the manifests away and waits until the runtime has no pods.
func (s *stand) removePods() error {
	files, err := filepath.Glob(filepath.Join(s.shim.Manifests(), "*"))
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	if s.shim.PID() == 0 {
		err = errors.Join(err, s.shim.Start(context.Background()))
	}
	return errors.Join(err, criclient.Wait(context.Background(), patience, func() bool {
		list, err := s.engine.client.Runtime.ListPodSandbox(context.Background(), &cri.ListPodSandboxRequest{})
		pods, podsErr := s.shim.Pods()
		return err == nil && podsErr == nil && len(list.Items)+len(pods) == 0
	}))
}

// warmUp runs a pod and waits until it is gone.
func (s *stand) warmUp() error {
	file := filepath.Join(s.shim.Manifests(), "warm.yaml")
	text := strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: warm}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: IMAGE, ports: [{containerPort: 80, hostPort: 18079}]}]
`, "IMAGE", image) // the first host port makes chains that stay
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	err := criclient.Wait(context.Background(), patience, func() bool {
		p, err := s.find(v1.NamespaceDefault, "warm")
		return err == nil && ready(p)
	})
	return errors.Join(err, s.removePods())
}

// find is a pod that the shim has.
func (s *stand) find(namespace, name string) (*v1.Pod, error) {
	list, err := s.shim.Pods()
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Namespace == namespace && list[i].Name == name+"-"+shim.NodeName {
			return &list[i], nil
		}
	}
	return nil, fmt.Errorf("pod %s/%s: not among %d", namespace, name, len(list))
}

func ready(p *v1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// play is a test on a stand, with pods in a namespace of its own.
type play struct {
	*testing.T
	*stand
	space string
}

func (s *stand) begin(t *testing.T) *play {
	t.Helper()
	p := &play{t, s, criclient.Unique("t")}
	t.Cleanup(p.end)
	return p
}

// end takes the test's manifests away and waits until its pods are gone.
func (p *play) end() {
	list, _ := p.shim.Pods()
	if p.Failed() {
		for _, pod := range list {
			if pod.Namespace == p.space {
				p.Logf("pod %s: %+v", pod.Name, pod.Status)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(p.shim.Manifests(), p.space+"*"))
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	err = errors.Join(err, criclient.Wait(context.Background(), patience, func() bool {
		list, err := p.shim.Pods()
		for _, pod := range list {
			if pod.Namespace == p.space {
				return false
			}
		}
		return err == nil
	}))
	if err != nil {
		p.Errorf("pods do not go: %v", err)
	}
}

// file is the path of a manifest of the test.
func (p *play) file(name string) string { return filepath.Join(p.shim.Manifests(), p.space+"-"+name) }

// fill replaces what stands for the test's images and its namespace.
func (p *play) fill(text string) string {
	return strings.NewReplacer("IMAGE", image, "SECLUDED", secluded, "SPACE", p.space).Replace(text)
}

// write writes a manifest, as an editor that replaces the file.
func (p *play) write(name, text string) {
	p.Helper()
	temporary := filepath.Join(p.shim.Manifests(), "."+p.space+name)
	err := os.WriteFile(temporary, []byte(p.fill(text)), 0o644)
	if err = errors.Join(err, os.Rename(temporary, p.file(name))); err != nil {
		p.Fatal(err)
	}
}

func (p *play) remove(name string) {
	p.Helper()
	if err := os.Remove(p.file(name)); err != nil {
		p.Fatal(err)
	}
}

// eventually asks until there is no error.
func (p *play) eventually(what string, ask func() error) {
	p.Helper()
	var last error
	if err := criclient.Wait(p.Context(), patience, func() bool { last = ask(); return last == nil }); err != nil {
		p.Fatalf("waited %s for %s: %v", patience, what, last)
	}
}

// waitPod waits until a pod is as it should be, and returns it.
func (p *play) waitPod(name, what string, ok func(*v1.Pod) bool) *v1.Pod {
	p.Helper()
	var pod *v1.Pod
	p.eventually("pod "+name+" to be "+what, func() (err error) {
		if pod, err = p.find(p.space, name); err == nil && !ok(pod) {
			err = fmt.Errorf("phase %s", pod.Status.Phase)
		}
		return err
	})
	return pod
}

// gone waits until neither the shim nor the runtime has a pod.
func (p *play) gone(name string) {
	p.Helper()
	p.eventually("the end of pod "+name, func() error {
		if _, err := p.find(p.space, name); err == nil {
			return errors.New("the shim has it")
		}
		return p.absent(name)
	})
}

func (p *play) absent(name string) error {
	list, err := p.engine.client.Runtime.ListPodSandbox(p.Context(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.namespace": p.space, "io.kubernetes.pod.name": name + "-" + shim.NodeName},
	}})
	if err == nil && len(list.Items) > 0 {
		err = errors.New("the runtime has it")
	}
	return err
}

// logged waits until the shim has logged a line with all words.
func (p *play) logged(words ...string) {
	p.Helper()
	p.eventually(fmt.Sprintf("a line of the log with %q", words), func() error {
		for line := range strings.Lines(p.shim.Log()) {
			if containsAll(line, words) {
				return nil
			}
		}
		return errors.New("there is none")
	})
}

func containsAll(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// get asks the kubelet API.
func (p *play) get(path string) string {
	p.Helper()
	resp, err := http.Get(p.shim.API().Host + path)
	if err != nil {
		p.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		p.Fatalf("%s: %s, %v: %s", path, resp.Status, err, body)
	}
	return string(body)
}

// log waits until a container has written something.
func (p *play) log(pod, container, want string) string {
	p.Helper()
	text := ""
	p.eventually(fmt.Sprintf("%q in the log of %s", want, pod), func() error {
		text = p.get("/containerLogs/" + p.space + "/" + pod + "-" + shim.NodeName + "/" + container)
		if !strings.Contains(text, want) {
			return fmt.Errorf("it is %q", text)
		}
		return nil
	})
	return text
}

// exec runs a command in a container through the kubelet API, as kubectl exec does.
func (p *play) exec(pod, container string, command ...string) (string, error) {
	p.Helper()
	at, err := url.Parse(p.shim.API().Host + "/exec/" + p.space + "/" + pod + "-" + shim.NodeName + "/" + container)
	if err != nil {
		p.Fatal(err)
	}
	at.RawQuery = url.Values{"command": command, "output": {"1"}, "error": {"1"}}.Encode()
	executor, err := remotecommand.NewSPDYExecutor(p.shim.API(), http.MethodPost, at)
	if err != nil {
		p.Fatal(err)
	}
	var out, errs bytes.Buffer
	if err := executor.StreamWithContext(p.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}); err != nil {
		return out.String(), fmt.Errorf("exec %q: %w: %s", command, err, errs.String())
	}
	return out.String(), nil
}

// containers are the IDs of all containers that run, by pod and name.
func (p *play) containers() map[string]string {
	p.Helper()
	list, err := p.shim.Pods()
	if err != nil {
		p.Fatal(err)
	}
	ids := map[string]string{}
	for _, pod := range list {
		if pod.Namespace != p.space {
			continue
		}
		for _, c := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
			if c.State.Running != nil {
				ids[pod.Name+"/"+c.Name] = c.ContainerID
			}
		}
	}
	return ids
}
