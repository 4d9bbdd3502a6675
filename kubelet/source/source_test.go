package source

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

var as = Static{Node: "Edge", Source: pod.FileSource, Log: slog.New(slog.DiscardHandler)}

const one = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: main
    image: example.com/web
    ports: [{containerPort: 80}]
    resources: {limits: {cpu: 1}}
    livenessProbe: {httpGet: {port: 80}}
  volumes: [{name: v}]
`

func TestDecode(t *testing.T) {
	pods, err := as.Decode([]byte(one+"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n---\n"+strings.Replace(one, "name: web", "name: two, namespace: other", 1)), "f")
	if err != nil || len(pods) != 2 {
		t.Fatalf("%d pods, %v", len(pods), err)
	}
	p, c := pods[0], pods[0].Spec.Containers[0]
	if p.Name != "web-edge" || p.Namespace != "default" || p.UID == "" || p.Spec.NodeName != "Edge" || !pod.IsStatic(p) || p.Annotations[pod.HashAnnotation] != string(p.UID) {
		t.Errorf("%s/%s, UID %q, node %q, annotations %v", p.Namespace, p.Name, p.UID, p.Spec.NodeName, p.Annotations)
	}
	if p.Spec.RestartPolicy != v1.RestartPolicyAlways || *p.Spec.TerminationGracePeriodSeconds != 30 || p.Spec.Volumes[0].EmptyDir == nil ||
		c.ImagePullPolicy != v1.PullAlways || c.Ports[0].Protocol != v1.ProtocolTCP || c.LivenessProbe.FailureThreshold != 3 || c.LivenessProbe.HTTPGet.Path != "/" {
		t.Errorf("defaults: %+v", p.Spec)
	}
	if q := c.Resources.Requests[v1.ResourceCPU]; q.String() != "1" {
		t.Errorf("a limit without a request asks for %s", q.String())
	}
	again, _ := as.Decode([]byte(one), "f")
	changed, _ := as.Decode([]byte(strings.Replace(one, "web\n", "web:2\n", 1)), "f")
	elsewhere, _ := as.Decode([]byte(one), "g")
	if again[0].UID != p.UID || changed[0].UID == p.UID || elsewhere[0].UID == p.UID {
		t.Errorf("UIDs: %s, again %s, changed %s, in another file %s", p.UID, again[0].UID, changed[0].UID, elsewhere[0].UID)
	}
}

func TestLists(t *testing.T) {
	item := `{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"x:1"}]}}`
	kind := strings.Replace(item, "{", `{"apiVersion":"v1","kind":"Pod",`, 1)
	for _, list := range []string{
		`{"apiVersion":"v1","kind":"PodList","items":[` + item + `]}`,
		`{"apiVersion":"v1","kind":"List","items":[` + kind + `,{"apiVersion":"v1","kind":"Secret"}]}`,
	} {
		if pods, err := as.Decode([]byte(list), "f"); err != nil || len(pods) != 1 || pods[0].Name != "a-edge" {
			t.Errorf("%s: %v, %v", list, pods, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	for want, change := range map[string][2]string{
		"spec.containers: empty":       {"containers:", "initContainers:"},
		"metadata.name":                {"name: web", "labels: {}"},
		"no volume \"w\"":              {"resources:", "volumeMounts: [{name: w, mountPath: /w}]\n    resources:"},
		"must be from 1 to 65535":      {"containerPort: 80", "containerPort: 80000"},
		"spec.restartPolicy \"Maybe\"": {"containers:", "restartPolicy: Maybe\n  containers:"},
		"is above the limit":           {"limits: {cpu: 1}", "limits: {cpu: 1}, requests: {cpu: 2}"},
		"image: missing":               {"image: example.com/web", "tty: true"},
	} {
		if _, err := as.Decode([]byte(strings.Replace(one, change[0], change[1], 1)), "f"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", change, err, want)
		}
	}
	if _, err := as.Decode([]byte(one+"---"+one), "f"); err == nil {
		t.Error("two pods of one name were taken")
	}
}

// FuzzDecode: whatever is in a file, what is taken is a pod that can be kept.
func FuzzDecode(f *testing.F) {
	f.Add(one)
	f.Add("kind: List\nitems: [1]")
	f.Fuzz(func(t *testing.T, data string) {
		pods, err := as.Decode([]byte(data), "f")
		if err != nil {
			return
		}
		for _, p := range pods {
			if p.UID == "" || p.Name == "" || p.Namespace == "" || len(p.Spec.Containers) == 0 {
				t.Errorf("took %+v", p)
			}
		}
	})
}

// sink notes what it is told.
type sink struct {
	mu   sync.Mutex
	told []string
	wake chan struct{}
}

func newSink() *sink { return &sink{wake: make(chan struct{}, 100)} }

func (s *sink) note(text string) {
	s.mu.Lock()
	s.told = append(s.told, text)
	s.mu.Unlock()
	s.wake <- struct{}{}
}

func (s *sink) Set(p *v1.Pod)       { s.note("+" + p.Name) }
func (s *sink) Delete(p *v1.Pod)    { s.note("-" + p.Name) }
func (s *sink) Ready(source string) { s.note("ready " + source) }

// waitFor waits until all of want was told since the last call.
func (s *sink) waitFor(t *testing.T, want ...string) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		s.mu.Lock()
		got := slices.Clone(s.told)
		s.mu.Unlock()
		slices.Sort(got)
		slices.Sort(want)
		if slices.Equal(got, want) {
			s.mu.Lock()
			s.told = nil
			s.mu.Unlock()
			return
		}
		select {
		case <-s.wake:
		case <-limit:
			t.Fatalf("told %q, want %q", got, want)
		}
	}
}

// TestFiles follows a directory: a new file, a changed one, one that breaks, and one that goes.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", one)
	ctx, cancel := context.WithCancel(t.Context())
	s, done := newSink(), make(chan struct{})
	go func() { defer close(done); Files(ctx, dir, as, time.Hour, s) }()
	defer func() { cancel(); <-done }()
	s.waitFor(t, "+web-edge", "ready file")
	write("b.yaml", strings.ReplaceAll(one, "web", "other"))
	s.waitFor(t, "+other-edge")
	write("b.yaml", strings.ReplaceAll(one, "web", "third"))
	s.waitFor(t, "-other-edge", "+third-edge")
	write("b.yaml", "kind: Pod\nspec: {")
	write(".hidden.yaml", strings.ReplaceAll(one, "web", "hidden"))
	write("c.yaml", strings.ReplaceAll(one, "web", "fourth"))
	s.waitFor(t, "+fourth-edge") // and the third one stays
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	s.waitFor(t, "-third-edge")
}

// TestURL keeps what it had while the server fails.
func TestURL(t *testing.T) {
	var mu sync.Mutex
	body, code := one, http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("X-Key") != "k" {
			t.Error("the header was not sent")
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	s, done := newSink(), make(chan struct{})
	from := Remote{URL: server.URL, Header: http.Header{"X-Key": {"k"}}, Period: 10 * time.Millisecond}
	go func() { defer close(done); URL(ctx, from, as, s) }()
	defer func() { cancel(); <-done }()
	s.waitFor(t, "+web-edge", "ready http")
	mu.Lock()
	code = http.StatusInternalServerError
	mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	mu.Lock()
	code, body = http.StatusOK, strings.ReplaceAll(one, "web", "next")
	mu.Unlock()
	s.waitFor(t, "-web-edge", "+next-edge")
}
