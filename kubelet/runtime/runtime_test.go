package runtime

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// engine is a fake runtime behind a real socket.
type engine struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	mu         sync.Mutex
	containers map[string]*cri.Container
	sandboxes  map[string]*cri.PodSandbox
	statuses   int // how often a container's status was asked for
	noEvents   bool
	events     chan *cri.ContainerEventResponse
}

func serve(t *testing.T) (*engine, *Client) {
	t.Helper()
	e := &engine{containers: map[string]*cri.Container{}, sandboxes: map[string]*cri.PodSandbox{}, events: make(chan *cri.ContainerEventResponse, 10)}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, e)
	cri.RegisterImageServiceServer(g, e)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	pass := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		return call(ctx, method, req, reply, conn, opts...)
	}
	c, err := Dial("unix://"+socket, "", time.Minute, pass)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return e, c
}

// add adds a pod's sandbox with a container.
func (e *engine) add(uid, name string, state cri.ContainerState, created int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	labels := map[string]string{PodUIDLabel: uid, PodNameLabel: uid, PodNamespaceLabel: "n"}
	e.sandboxes["s-"+uid] = &cri.PodSandbox{Id: "s-" + uid, Labels: labels, CreatedAt: 1}
	id := uid + "-" + name + "-" + time.Duration(created).String()
	e.containers[id] = &cri.Container{Id: id, PodSandboxId: "s-" + uid, Metadata: &cri.ContainerMetadata{Name: name}, Labels: labels, State: state, CreatedAt: created}
}

func matches(labels, selector map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func (e *engine) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	reply := &cri.ListPodSandboxResponse{}
	for _, s := range e.sandboxes {
		if matches(s.Labels, r.GetFilter().GetLabelSelector()) {
			reply.Items = append(reply.Items, s)
		}
	}
	return reply, nil
}

func (e *engine) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	reply := &cri.ListContainersResponse{}
	for _, c := range e.containers {
		if matches(c.Labels, r.GetFilter().GetLabelSelector()) {
			reply.Containers = append(reply.Containers, c)
		}
	}
	return reply, nil
}

func (e *engine) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{Id: r.PodSandboxId, Metadata: &cri.PodSandboxMetadata{Name: "p", Namespace: "n"}}}, nil
}

func (e *engine) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.statuses++
	c := e.containers[r.ContainerId]
	if c == nil {
		return nil, status.Error(codes.NotFound, "gone")
	}
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: c.Id, Metadata: c.Metadata, State: c.State, CreatedAt: c.CreatedAt}}, nil
}

func (e *engine) GetContainerEvents(_ *cri.GetEventsRequest, stream grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	if e.noEvents {
		return status.Error(codes.Unimplemented, "no events")
	}
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case event := <-e.events:
			if err := stream.Send(event); err != nil {
				return err
			}
		}
	}
}

const (
	running = cri.ContainerState_CONTAINER_RUNNING
	exited  = cri.ContainerState_CONTAINER_EXITED
)

// TestPod reads one pod, newest first, and asks for the status of what has ended only once.
func TestPod(t *testing.T) {
	e, client := serve(t)
	e.add("u", "a", exited, 1)
	e.add("u", "a", running, 3)
	e.add("u", "b", exited, 2)
	e.add("other", "a", running, 9)
	r := NewReader(client)
	for range 2 {
		p, err := r.Pod(t.Context(), "u")
		if err != nil || len(p.Containers) != 3 || len(p.Sandboxes) != 1 {
			t.Fatalf("%+v, %v", p, err)
		}
		if p.Latest("a").CreatedAt != 3 || p.Previous("a").CreatedAt != 1 || p.Previous("b") != nil || p.Latest("c") != nil || p.Latest("b").SandboxID != "s-u" || !p.Running() {
			t.Errorf("%+v", p)
		}
	}
	if e.statuses != 4 { // 3 and then the one that runs
		t.Errorf("asked for %d statuses", e.statuses)
	}
	if p, err := r.Pod(t.Context(), "absent"); err != nil || len(p.Containers) != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestList leaves out what others made over the same socket.
func TestList(t *testing.T) {
	e, client := serve(t)
	e.add("u", "a", running, 1)
	e.add("", "stranger", running, 1)
	got, err := NewReader(client).List(t.Context())
	if err != nil || len(got) != 1 || got["u"] == nil || len(got["u"].Containers) != 1 || got["u"].Namespace != "n" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRestartCount(t *testing.T) {
	c := &Container{ContainerStatus: &cri.ContainerStatus{Metadata: &cri.ContainerMetadata{Attempt: 2}}}
	if RestartCount(c) != 2 {
		t.Error("the attempt counts where there is no annotation")
	}
	c.Annotations = map[string]string{RestartCountAnnotation: "7"}
	if RestartCount(c) != 7 {
		t.Error("the annotation counts")
	}
}

// changes collects the pods of which a Watcher tells.
type changes chan types.UID

func (c changes) wait(t *testing.T, want types.UID) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		select {
		case uid := <-c:
			if uid == want {
				return
			}
		case <-limit:
			t.Fatalf("%s was not told", want)
		}
	}
}

func watch(t *testing.T, client *Client) (changes, *Watcher) {
	t.Helper()
	told := make(changes, 100)
	w := NewWatcher(NewReader(client), func(uid types.UID, _ time.Time) { told <- uid }, func(time.Duration) {}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return told, w
}

func TestEvents(t *testing.T) {
	e, client := serve(t)
	e.add("u", "a", running, 1)
	told, w := watch(t, client)
	told.wait(t, "u") // by the first list
	e.events <- &cri.ContainerEventResponse{PodSandboxStatus: &cri.PodSandboxStatus{Metadata: &cri.PodSandboxMetadata{Uid: "v"}}}
	told.wait(t, "v")
	if err := w.Healthy(); err != nil {
		t.Error(err)
	}
}

// TestWithoutEvents finds by listing what a runtime without events does not tell.
func TestWithoutEvents(t *testing.T) {
	e, client := serve(t)
	e.noEvents = true
	told, _ := watch(t, client)
	e.add("u", "a", running, 1)
	told.wait(t, "u")
	e.add("u", "a", exited, 1) // the same container
	told.wait(t, "u")
	e.mu.Lock()
	clear(e.containers)
	clear(e.sandboxes)
	e.mu.Unlock()
	told.wait(t, "u")
}

func TestDiffer(t *testing.T) {
	a := &Listed{Containers: []Item{{ID: "1", State: 1}, {ID: "2"}}}
	b := &Listed{Containers: []Item{{ID: "2"}, {ID: "1", State: 1}}}
	c := &Listed{Containers: []Item{{ID: "2"}, {ID: "1", State: 2}}}
	for _, tt := range []struct {
		before, after map[types.UID]*Listed
		want          []types.UID
	}{
		{map[types.UID]*Listed{"u": a}, map[types.UID]*Listed{"u": b}, nil},
		{map[types.UID]*Listed{"u": a}, map[types.UID]*Listed{"u": c}, []types.UID{"u"}},
		{map[types.UID]*Listed{"u": a}, nil, []types.UID{"u"}},
		{nil, map[types.UID]*Listed{"u": a}, []types.UID{"u"}},
	} {
		var got []types.UID
		for uid := range differ(tt.before, tt.after) {
			got = append(got, uid)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v, want %v", got, tt.want)
		}
	}
}

func TestDialRefuses(t *testing.T) {
	for _, endpoint := range []string{"", "/run/x.sock", "tcp://127.0.0.1:1", "unix://relative"} {
		if _, err := Dial(endpoint, "", 0, nil); err == nil {
			t.Errorf("endpoint %q was taken", endpoint)
		}
	}
}
