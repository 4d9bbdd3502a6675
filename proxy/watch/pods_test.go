package watch

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/orlop/orlop/proxy/model"
)

// fakeKubelet streams pods as the shim does, or lists them as kubelet does.
type fakeKubelet struct {
	*httptest.Server
	lists bool

	mu    sync.Mutex
	pods  map[types.UID]*corev1.Pod
	lines chan map[string]any // of the stream that runs
	end   chan struct{}
}

func newFakeKubelet(t *testing.T, lists bool, pods ...*corev1.Pod) *fakeKubelet {
	t.Helper()
	k := &fakeKubelet{lists: lists, pods: map[types.UID]*corev1.Pod{}, lines: make(chan map[string]any), end: make(chan struct{})}
	for _, p := range pods {
		k.pods[p.UID] = p
	}
	k.Server = httptest.NewServer(k)
	t.Cleanup(func() { k.CloseClientConnections(); k.Close() })
	return k
}

func (k *fakeKubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	var all []corev1.Pod
	for _, p := range k.pods {
		all = append(all, *p)
	}
	end := k.end
	k.mu.Unlock()
	out := json.NewEncoder(w)
	if r.URL.RequestURI() != "/pods?watch=true" {
		http.Error(w, r.URL.RequestURI(), http.StatusNotFound)
		return
	}
	if k.lists {
		_ = out.Encode(corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: all})
		return
	}
	for _, p := range all {
		_ = out.Encode(map[string]any{"type": "ADDED", "object": p})
	}
	mark := metav1.ObjectMeta{Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}
	_ = out.Encode(map[string]any{"type": "BOOKMARK", "object": corev1.Pod{ObjectMeta: mark}})
	for {
		w.(http.Flusher).Flush()
		select {
		case line := <-k.lines:
			_ = out.Encode(line)
		case <-end:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// restart ends the stream, and has other pods.
func (k *fakeKubelet) restart(pods ...*corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods = map[types.UID]*corev1.Pod{}
	for _, p := range pods {
		k.pods[p.UID] = p
	}
	close(k.end)
	k.end = make(chan struct{})
}

func pod(name string, ips ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "a", "x": "y"}},
		Spec: corev1.PodSpec{NodeName: "here", Containers: []corev1.Container{{
			Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

const selectingYAML = `apiVersion: v1
kind: Service
metadata: {name: a, namespace: ns}
spec:
  clusterIPs: [10.96.0.1, "fd96::1"]
  selector: {app: a}
  ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, targetPort: 5353, protocol: UDP}]
`

// endpoints are what was told of slices, as "PORT ADDRESS conditions pod".
func endpoints(r *recorder) []string {
	var out []string
	for _, s := range r.slices {
		for _, port := range s.Ports {
			for _, e := range s.Endpoints {
				text := port.Protocol.String() + " " + e.Addr.String() + " " + e.Pod + "@" + e.Node.Value()
				for what, is := range map[string]bool{"ready": e.Ready, "serving": e.Serving, "terminating": e.Terminating} {
					if is {
						text += " " + what
					}
				}
				words := strings.Fields(text)
				slices.Sort(words[3:])
				out = append(out, s.Service.Name+" "+port.Name+" "+strings.Join(words, " ")+" "+string(rune('0'+port.Port%10)))
			}
		}
	}
	slices.Sort(out)
	return out
}

func followPods(t *testing.T, k *fakeKubelet, yaml string) *recorder {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "a.yaml", yaml)
	log, _ := logOf(t)
	r := run(t, &Directory{Path: dir, Node: Node{Node: model.Node{Name: "here"}}, Pods: &Pods{URL: k.URL}, Log: log})
	r.awaitSynced(t)
	return r
}

func TestPodsOfTheKubeletAreEndpoints(t *testing.T) {
	for _, lists := range []bool{false, true} {
		other := pod("other", "10.1.0.9")
		other.Labels = nil
		elsewhere := pod("elsewhere", "10.1.0.8")
		elsewhere.Namespace = "x"
		k := newFakeKubelet(t, lists, pod("p", "10.1.0.1", "fd01::1"), pod("new"), other, elsewhere)
		r := followPods(t, k, selectingYAML)
		want := []string{
			"a dns udp 10.1.0.1 p@here ready serving 3", "a dns udp fd01::1 p@here ready serving 3",
			"a http tcp 10.1.0.1 p@here ready serving 0", "a http tcp fd01::1 p@here ready serving 0",
		}
		if diff := cmp.Diff(want, endpoints(r)); diff != "" {
			t.Errorf("a kubelet that lists: %v:\n%s", lists, diff)
		}
	}
}

func TestPodsThatChange(t *testing.T) {
	k := newFakeKubelet(t, false, pod("p", "10.1.0.1"))
	r := followPods(t, k, strings.Replace(selectingYAML, `, "fd96::1"`, "", 1))
	tell := func(kind string, p *corev1.Pod, want ...string) {
		t.Helper()
		k.lines <- map[string]any{"type": kind, "object": p}
		r.await(t, kind+" "+p.Name, func() bool { return slices.Equal(endpoints(r), want) })
	}
	p, q := pod("p", "10.1.0.1"), pod("q", "10.1.0.2")
	tell("ADDED", q, "a dns udp 10.1.0.1 p@here ready serving 3", "a dns udp 10.1.0.2 q@here ready serving 3",
		"a http tcp 10.1.0.1 p@here ready serving 0", "a http tcp 10.1.0.2 q@here ready serving 0")
	p.Status.Conditions[0].Status = corev1.ConditionFalse
	tell("MODIFIED", p, "a dns udp 10.1.0.1 p@here 3", "a dns udp 10.1.0.2 q@here ready serving 3",
		"a http tcp 10.1.0.1 p@here 0", "a http tcp 10.1.0.2 q@here ready serving 0")
	q.DeletionTimestamp = &metav1.Time{}
	*q.DeletionTimestamp = metav1.Now()
	tell("MODIFIED", q, "a dns udp 10.1.0.1 p@here 3", "a dns udp 10.1.0.2 q@here serving terminating 3",
		"a http tcp 10.1.0.1 p@here 0", "a http tcp 10.1.0.2 q@here serving terminating 0")
	q.Status.Phase = corev1.PodSucceeded
	tell("MODIFIED", q, "a dns udp 10.1.0.1 p@here 3", "a http tcp 10.1.0.1 p@here 0")
	p.Spec.Containers[0].Ports[0].ContainerPort = 9001 // another number behind the name is another slice
	tell("MODIFIED", p, "a dns udp 10.1.0.1 p@here 3", "a http tcp 10.1.0.1 p@here 1")
	p.Spec.Containers[0].Ports = nil
	tell("MODIFIED", p, "a dns udp 10.1.0.1 p@here 3")
	tell("DELETED", p)
}

func TestPodsPublishedThoughNotReady(t *testing.T) {
	p := pod("p", "10.1.0.1")
	p.Status.Conditions = nil
	k := newFakeKubelet(t, false, p)
	r := followPods(t, k, strings.Replace(selectingYAML, "selector:", "publishNotReadyAddresses: true\n  selector:", 1))
	want := []string{"a dns udp 10.1.0.1 p@here ready 3", "a http tcp 10.1.0.1 p@here ready 0"}
	if diff := cmp.Diff(want, endpoints(r)); diff != "" {
		t.Error(diff)
	}
}

// TestPodsOfASidecar: ports of init containers that go on running count (KEP-753), of others they don't.
func TestPodsOfASidecar(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	p, q := pod("p", "10.1.0.1"), pod("q", "10.1.0.2")
	p.Spec.InitContainers, p.Spec.Containers = p.Spec.Containers, nil
	p.Spec.InitContainers[0].RestartPolicy = &always
	q.Spec.InitContainers, q.Spec.Containers = q.Spec.Containers, nil
	r := followPods(t, newFakeKubelet(t, false, p, q), selectingYAML)
	want := []string{"a dns udp 10.1.0.1 p@here ready serving 3", "a dns udp 10.1.0.2 q@here ready serving 3", "a http tcp 10.1.0.1 p@here ready serving 0"}
	if diff := cmp.Diff(want, endpoints(r)); diff != "" {
		t.Error(diff)
	}
}

// TestPodsWhileTheKubeletRestarts stay as they were, and what ended meanwhile goes.
func TestPodsWhileTheKubeletRestarts(t *testing.T) {
	k := newFakeKubelet(t, false, pod("p", "10.1.0.1"), pod("q", "10.1.0.2"))
	r := followPods(t, k, strings.Replace(selectingYAML, `, "fd96::1"`, "", 1))
	r.take()
	k.restart(pod("q", "10.1.0.2"), pod("r", "10.1.0.3"))
	r.await(t, "the new pods", func() bool { return strings.Contains(strings.Join(endpoints(r), " "), "10.1.0.3") })
	want := []string{
		"a dns udp 10.1.0.2 q@here ready serving 3", "a dns udp 10.1.0.3 r@here ready serving 3",
		"a http tcp 10.1.0.2 q@here ready serving 0", "a http tcp 10.1.0.3 r@here ready serving 0",
	}
	if diff := cmp.Diff(want, endpoints(r)); diff != "" {
		t.Error(diff)
	}
	for _, call := range r.take() {
		if strings.HasPrefix(call, "delete") {
			t.Errorf("%s: service was interrupted", call)
		}
	}
}

// TestPodsAreAwaited: until the kubelet has told them, no Service may seem to have none.
func TestPodsAreAwaited(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", selectingYAML)
	log, text := logOf(t)
	r := run(t, &Directory{Path: dir, Pods: &Pods{URL: "http://127.0.0.1:1"}, Log: log})
	r.await(t, "a complaint", func() bool { return strings.Contains(text.String(), "kubelet") })
	if r.synced[Slices] != 0 || r.synced[Services] != 1 {
		t.Errorf("synced is %v", r.synced)
	}
}

// answers is a kubelet that says what it is told to.
type answers []byte

func (a answers) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(a))}, nil
}

// FuzzPods: whatever a kubelet answers, it leads to endpoints that can be used, or to none.
func FuzzPods(f *testing.F) {
	pod := `{"metadata": {"namespace": "default", "name": "a", "uid": "u", "labels": {"app": "web"}}, "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
		"status": {"podIPs": [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}], "conditions": [{"type": "Ready", "status": "True"}]}}`
	bookmark := `{"type": "BOOKMARK", "object": {"metadata": {"annotations": {"k8s.io/initial-events-end": "true"}}}}`
	f.Add([]byte(`{"kind": "PodList", "items": [` + pod + `]}`))
	f.Add([]byte(`{"type": "ADDED", "object": ` + pod + `}` + bookmark + `{"type": "DELETED", "object": ` + pod + `}`))
	f.Add([]byte(`{"type": "MODIFIED", "object": {}}` + bookmark + `[`))
	s := &selecting{
		service: model.Name{Namespace: "default", Name: "web"}, selector: labels.SelectorFromSet(labels.Set{"app": "web"}), families: []model.Family{model.IPv4, model.IPv6},
		ports: []corev1.ServicePort{{Name: "p", Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("http")}},
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		out := make(chan members)
		follower := &podFollower{Pods: &Pods{URL: "http://kubelet", Client: &http.Client{Transport: answers(data)}}, out: out, all: members{}}
		go func() {
			defer close(out)
			_ = follower.stream(t.Context()) // every stream that ends is an error
		}()
		for pods := range out {
			for _, slice := range s.slices(pods) {
				for _, e := range slice.value.Endpoints {
					if !e.Addr.IsValid() || model.FamilyOf(e.Addr) != slice.value.Family || e.Addr.IsLoopback() {
						t.Fatalf("endpoint %+v of slice %+v", e, slice.value)
					}
				}
			}
		}
	})
}
