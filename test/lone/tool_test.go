package lone

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/shim"
)

// TestURL: pods come from a server that wants a header, change with what it serves, and stay while it fails.
func TestURL(t *testing.T) {
	t.Parallel()
	var page atomic.Value
	page.Store("")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := page.Load().(string)
		if text == "" || r.Header.Get("Key") != "sesame" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		fmt.Fprint(w, text)
	}))
	t.Cleanup(server.Close)
	engine, err := orlop(t.Context(), filepath.Join(base, "d2"), 2)
	if err != nil {
		t.Fatal(err)
	}
	own := another(t, standOptions{engine: engine, dir: filepath.Join(base, "n2"), port: 10260,
		settings: gentle + "staticPodURL: " + server.URL + "\nstaticPodURLHeader: {Key: [sesame]}\nhttpCheckFrequency: 200ms\n"})
	p := own.begin(t)
	t.Cleanup(func() { page.Store(`{"kind": "PodList", "items": []}`) }) // before the stand waits for their end
	p.logged("manifest not fetched", server.URL, "403")
	page.Store(p.fill(strings.ReplaceAll(plain, "NAME", "one")))
	p.waitPod("one", "ready", ready)
	p.write("two.yaml", strings.ReplaceAll(plain, "NAME", "two")) // a directory beside it
	p.waitPod("two", "ready", ready)
	before := p.containers()
	page.Store("")
	p.eventually("the second failure", func() error {
		if strings.Count(p.shim.Log(), "manifest not fetched") < 4 {
			return errNot
		}
		return nil
	})
	if now := p.containers(); now["one-"+shim.NodeName+"/main"] != before["one-"+shim.NodeName+"/main"] {
		t.Errorf("while the server fails, %v became %v", before, now)
	}
	page.Store(p.fill(strings.ReplaceAll(plain, "NAME", "three")))
	p.waitPod("three", "ready", ready)
	p.gone("one")
}

// TestSeenByTools: the pods of the shim are the runtime's, under the names and labels that tools look for.
func TestSeenByTools(t *testing.T) {
	t.Parallel()
	p := first.begin(t)
	p.write("seen.yaml", strings.ReplaceAll(plain, "NAME", "seen"))
	pod := p.waitPod("seen", "ready", ready)
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, p.engine.name+"://")
	status, err := p.engine.client.Runtime.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	labels := status.Status.Labels
	for name, want := range map[string]string{
		"io.kubernetes.container.name": "main", "io.kubernetes.pod.name": "seen-" + shim.NodeName, "io.kubernetes.pod.namespace": p.space,
		"io.kubernetes.pod.uid": string(pod.UID),
	} {
		if labels[name] != want {
			t.Errorf("label %s: %q, want %q", name, labels[name], want)
		}
	}
	crictl, err := exec.LookPath("crictl")
	if err != nil {
		kernel.Skip(t, "crictl is not installed (Debian has no package of it); the labels that it reads were looked at")
	}
	for _, args := range [][]string{{"pods"}, {"ps"}} {
		out, err := exec.Command(crictl, append([]string{"--runtime-endpoint", "unix://" + p.engine.socket}, args...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "seen-"+shim.NodeName) {
			t.Errorf("crictl %s: %v: %s", args[0], err, out)
		}
	}
	out, err := exec.Command(crictl, "--runtime-endpoint", "unix://"+p.engine.socket, "exec", id, "echo", "hello").Output()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("crictl exec: %v: %q", err, out)
	}
}
