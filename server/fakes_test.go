package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/cni"
	"github.com/orlop/orlop/server/store"
	"github.com/orlop/orlop/server/stream"
	"github.com/orlop/orlop/storage"
)

// world is a machine in memory: what the server makes in it can be counted, and each operation can be made to fail
// before or after its effect. It outlives servers, as a machine does.
type world struct {
	t         testing.TB
	root, run string

	mu     sync.Mutex
	things map[string]bool // "kind/id" of all that exists
	calls  map[string]int  // of each operation
	faults map[string]error
	gates  map[string]chan struct{} // an operation waits until its gate is closed
	ctrs   map[string]*conmon.Container
	deaf   map[string]bool // containers that do not listen to SIGTERM
	stuck  map[string]bool // containers that SIGKILL does not end

	created map[string]conmon.CreateRequest // the last of each container and init
	sent    []int                           // signals
	events  func(conmon.Event)
	resync  func()
	nextID  int
}

var errFault = errors.New("injected fault")

func newWorld(t testing.TB) *world {
	dir := t.TempDir()
	return &world{
		t: t, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run"),
		things: map[string]bool{}, calls: map[string]int{}, faults: map[string]error{}, gates: map[string]chan struct{}{},
		ctrs: map[string]*conmon.Container{}, deaf: map[string]bool{}, stuck: map[string]bool{}, nextID: 1000,
		created: map[string]conmon.CreateRequest{},
	}
}

// do is one operation: each can fail or wait.
func (w *world) do(ctx context.Context, op string, effect func()) error {
	w.mu.Lock()
	w.calls[op]++
	gate := w.gates[op]
	before, after := w.faults[op+" before"], w.faults[op+" after"]
	w.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if before != nil {
		return before
	}
	w.mu.Lock()
	effect()
	w.mu.Unlock()
	return after
}

func (w *world) make(ctx context.Context, op, thing string) error {
	return w.do(ctx, op, func() { w.things[thing] = true })
}

func (w *world) unmake(ctx context.Context, op, thing string) error {
	return w.do(ctx, op, func() { delete(w.things, thing) })
}

func (w *world) fail(op string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[op] = err
}

func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.faults)
}

func (w *world) count(op string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[op]
}

// left lists all that exists, files included.
func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Collect(maps.Keys(w.things))
	for id := range w.ctrs {
		all = append(all, "process/"+id)
	}
	for _, dir := range []string{filepath.Join(w.run, "pods"), filepath.Join(w.root, "containers")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(all)
	return all
}

func (w *world) wantNothingLeft() {
	w.t.Helper()
	if left := w.left(); len(left) > 0 {
		w.t.Errorf("left behind: %q", left)
	}
}

// reboot ends all processes and empties what a reboot empties; images, root filesystems and cached ADDs stay.
func (w *world) reboot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.ctrs)
	for thing := range w.things {
		if kind := filepath.Dir(thing); kind != "rootfs" && kind != "network" {
			delete(w.things, thing)
		}
	}
	if err := os.RemoveAll(w.run); err != nil {
		w.t.Fatal(err)
	}
}

type fakeCgroups struct{ *world }

func (fakeCgroups) ContainerPath(parent, id string) (string, error) {
	if !filepath.IsAbs(parent) {
		return "", fmt.Errorf("cgroup parent %q is not absolute", parent)
	}
	return parent + "/orlop-" + id, nil
}
func (fakeCgroups) Dir(path string) (string, error) { return path, nil }
func (f fakeCgroups) Missing(parent string) (missing []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, level := range []string{filepath.Dir(parent), parent} {
		if level != "/" && !f.things["cgroup"+level] {
			missing = append(missing, level)
		}
	}
	return missing, nil
}
func (f fakeCgroups) EnsurePod(parent string) (made []string, err error) {
	err = f.do(context.Background(), "cgroup.make", func() {
		for _, level := range []string{filepath.Dir(parent), parent} {
			if level != "/" && !f.things["cgroup"+level] {
				f.things["cgroup"+level] = true
				made = append(made, level)
			}
		}
	})
	return made, err
}

// Remove leaves what has something in it, as the kernel does.
func (f fakeCgroups) Remove(made []string) error {
	return f.do(context.Background(), "cgroup.remove", func() {
		for _, dir := range slices.Backward(made) {
			inUse := false
			for thing := range f.things {
				inUse = inUse || strings.HasPrefix(thing, "cgroup"+dir+"/")
			}
			if !inUse {
				delete(f.things, "cgroup"+dir)
			}
		}
	})
}
func (f fakeCgroups) Read(dir string) (*cgroup.Stats, error) {
	return &cgroup.Stats{Time: time.Now(), CPU: &cgroup.CPU{UsageNanos: 5}, Processes: 2}, nil
}

type fakeStreams struct{ Streams }

func (fakeStreams) Close() error { return nil }

type fakeStorage struct{ *world }

func (f fakeStorage) CreateRootfs(ctx context.Context, o storage.RootfsOptions) (string, error) {
	return "/rootfs/" + o.ID, f.make(ctx, "rootfs.make", "rootfs/"+o.ID)
}
func (f fakeStorage) DeleteRootfs(ctx context.Context, id string) error {
	return f.unmake(ctx, "rootfs.delete", "rootfs/"+id)
}
func (f fakeStorage) RootfsUsage(context.Context, string) (storage.Usage, error) {
	return storage.Usage{Bytes: 9, Inodes: 1}, nil
}
func (f fakeStorage) ListRootfs() ([]string, error) {
	return f.ids("rootfs"), f.do(context.Background(), "rootfs.list", func() {})
}
func (f fakeStorage) MountImage(ctx context.Context, id, holder, _ string) (string, error) {
	return "/images/" + id, f.make(ctx, "volume.mount", "volume/"+holder)
}
func (f fakeStorage) UnmountImage(ctx context.Context, holder string) error {
	return f.unmake(ctx, "volume.unmount", "volume/"+holder)
}

func (w *world) ids(kind string) (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for thing := range w.things {
		if filepath.Dir(thing) == kind {
			ids = append(ids, filepath.Base(thing))
		}
	}
	return ids
}

type fakeImages struct{}

func (fakeImages) Resolve(name string) (*image.Image, error) {
	if name == "missing" {
		return nil, image.ErrNotFound
	}
	img := &image.Image{ID: "1d", RepoDigests: []string{"registry.test/a@sha256:1"}}
	img.Config.Cmd, img.Config.StopSignal = []string{"/bin/program"}, "SIGINT"
	return img, nil
}

type fakeNetwork struct{ *world }

func (f fakeNetwork) Add(ctx context.Context, p cni.Pod) (cni.Result, error) {
	if p.NetNS == "" {
		return cni.Result{}, errors.New("add without a namespace")
	}
	ips := []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}
	return cni.Result{Network: "net", IPs: ips}, f.make(ctx, "network.add", "network/"+p.ID)
}
func (f fakeNetwork) Del(ctx context.Context, p cni.Pod) error {
	return f.unmake(ctx, "network.del", "network/"+p.ID)
}
func (f fakeNetwork) Attached() ([]string, error) { return f.ids("network"), nil }
func (f fakeNetwork) Status() error               { return nil }
func (f fakeNetwork) SetPodCIDR(string) error     { return nil }

type fakeNamespaces struct{ *world }

func (f fakeNamespaces) Create(ctx context.Context, o ns.Options) error {
	return f.do(ctx, "ns.make", func() {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			f.t.Error(err)
		}
		f.things["ns"+o.Dir] = true
	})
}
func (f fakeNamespaces) Delete(ctx context.Context, dir string) error {
	return f.do(ctx, "ns.delete", func() {
		delete(f.things, "ns"+dir)
		if err := os.RemoveAll(dir); err != nil {
			f.t.Error(err)
		}
	})
}
func (f fakeNamespaces) Alive(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.things["ns"+filepath.Dir(path)]
}

type fakeLookup struct{ *world }

func (f fakeLookup) MakePodFiles(ctx context.Context, p PodFiles) error {
	return f.make(ctx, "files.make", "shm"+p.Dir)
}
func (f fakeLookup) RemovePodFiles(ctx context.Context, dir string) error {
	return f.unmake(ctx, "files.remove", "shm"+dir)
}
func (f fakeLookup) Container(ctx context.Context, in *spec.Input, images ImageMounter) error {
	in.User = spec.User{UID: 1000, GID: 1001, AdditionalGIDs: []uint32{1002}, Home: "/"}
	for i, m := range in.Container.GetMounts() {
		source := m.HostPath
		if m.Image != nil {
			var err error
			if source, err = images(ctx, i, m); err != nil {
				return err
			}
		}
		in.Mounts = append(in.Mounts, spec.Mount{CRI: m, Source: source})
	}
	return f.do(ctx, "lookup", func() {})
}

type fakeMonitor struct{ *world }

func (f fakeMonitor) Create(ctx context.Context, r conmon.CreateRequest) (conmon.Created, error) {
	var pid int
	err := f.do(ctx, "monitor.create", func() {
		if c := f.ctrs[r.ID]; c != nil {
			pid = c.Pid
			return
		}
		f.nextID++
		pid = f.nextID
		f.ctrs[r.ID] = &conmon.Container{ID: r.ID, Pid: pid}
		f.created[r.ID] = r
	})
	return conmon.Created{Pid: pid, Steps: map[string]time.Duration{"libcontainer": time.Millisecond}}, err
}

func (f fakeMonitor) Start(ctx context.Context, id string) (at time.Time, err error) {
	err = f.do(ctx, "monitor.start", func() {
		if c := f.ctrs[id]; c != nil && c.StartedAt.IsZero() {
			c.StartedAt = time.Now()
		}
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.ctrs[id]; c != nil {
		return c.StartedAt, err
	}
	return at, errors.Join(err, conmon.ErrNotFound)
}

func (f fakeMonitor) Signal(ctx context.Context, id string, signal int) error {
	var missing error
	err := f.do(ctx, "monitor.signal", func() {
		c := f.ctrs[id]
		switch {
		case c == nil:
			missing = conmon.ErrNotFound
			return
		case c.Exit != nil:
			missing = conmon.ErrNotRunning
			return
		}
		f.sent = append(f.sent, signal)
		if signal == int(unix.SIGKILL) && !f.stuck[id] || signal != int(unix.SIGKILL) && !f.deaf[id] {
			f.endLocked(id, conmon.Exit{Code: 128 + signal, Signal: signal})
		}
	})
	return errors.Join(err, missing)
}

// end lets a container end by itself.
func (w *world) end(id string, e conmon.Exit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked(id, e)
}

func (w *world) endLocked(id string, e conmon.Exit) {
	c := w.ctrs[id]
	e.FinishedAt = time.Now()
	c.Pid, c.Exit = 0, &e
	if w.events != nil {
		go w.events(conmon.Event{ID: id, Exit: e})
	}
}

func (f fakeMonitor) Delete(ctx context.Context, id string) error {
	return f.do(ctx, "monitor.delete", func() { delete(f.ctrs, id) })
}

func (f fakeMonitor) List(ctx context.Context) (list []conmon.Container, err error) {
	err = f.do(ctx, "monitor.list", func() {
		for _, c := range f.ctrs {
			list = append(list, *c)
		}
	})
	return list, err
}
func (f fakeMonitor) Exec(context.Context, conmon.ExecRequest, conmon.Stdio) (conmon.ExecResult, error) {
	return conmon.ExecResult{}, conmon.ErrNotFound
}
func (f fakeMonitor) Attach(context.Context, string) (*conmon.Attachment, error) {
	return nil, conmon.ErrNotFound
}
func (f fakeMonitor) CloseStdin(context.Context, string) error             { return nil }
func (f fakeMonitor) Resize(context.Context, string, uint16, uint16) error { return nil }
func (f fakeMonitor) Update(ctx context.Context, _ string, r *rspec.LinuxResources) error {
	return f.do(ctx, "monitor.update", func() {})
}
func (f fakeMonitor) ReopenLog(ctx context.Context, _ string) error {
	return f.do(ctx, "monitor.reopen", func() {})
}

// server starts a daemon in the world.
func (w *world) server() *Server {
	w.t.Helper()
	s, err := w.tryServer()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.stop(s) })
	return s
}

func (w *world) tryServer() (*Server, error) {
	deps := Deps{
		Host:    spec.Host{Controllers: map[string]bool{"cpu": true, "memory": true, "pids": true}, OOMScoreFloor: true},
		Cgroups: fakeCgroups{w}, Storage: fakeStorage{w}, Images: fakeImages{}, Network: fakeNetwork{w},
		Namespaces: fakeNamespaces{w}, Lookup: fakeLookup{w},
		Streams: func(stream.Monitor, stream.Subjects) (Streams, error) { return fakeStreams{}, nil },
		Connect: func(_ context.Context, events func(conmon.Event), resync func()) (Monitor, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events, w.resync = events, resync
			return fakeMonitor{w}, nil
		},
	}
	cfg := Config{Root: w.root, RunRoot: w.run, CgroupParent: "/orlop", InitPath: os.Args[0], Version: "test"}
	return New(context.Background(), cfg, deps, slog.New(slog.NewTextHandler(io.Discard, nil)))
}

// stop ends a daemon; the world goes on.
func (w *world) stop(s *Server) {
	w.mu.Lock()
	w.events = nil
	w.mu.Unlock()
	if err := s.Close(); err != nil {
		w.t.Error(err)
	}
}

func runRequest(name string) *cri.RunPodSandboxRequest {
	return &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid"},
		Hostname: name, Labels: map[string]string{"app": name}, Linux: &cri.LinuxPodSandboxConfig{},
	}}
}

func createRequest(pod, name string) *cri.CreateContainerRequest {
	return &cri.CreateContainerRequest{PodSandboxId: pod, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: "app"},
		Labels: map[string]string{"app": name},
		Mounts: []*cri.Mount{{ContainerPath: "/volume", Image: &cri.ImageSpec{Image: "data"}}},
	}}
}

func (w *world) runPod(s *Server, name string) string {
	w.t.Helper()
	resp, err := s.RunPodSandbox(w.t.Context(), runRequest(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.PodSandboxId
}

func (w *world) create(s *Server, pod, name string) string {
	w.t.Helper()
	resp, err := s.CreateContainer(w.t.Context(), createRequest(pod, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.ContainerId
}

func (w *world) start(s *Server, id string) {
	w.t.Helper()
	if _, err := s.StartContainer(w.t.Context(), &cri.StartContainerRequest{ContainerId: id}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) removePod(s *Server, id string) {
	w.t.Helper()
	if _, err := s.RemovePodSandbox(w.t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) status(s *Server, id string) *cri.ContainerStatus {
	w.t.Helper()
	resp, err := s.ContainerStatus(w.t.Context(), &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.Status
}

func (w *world) podState(s *Server, id string) cri.PodSandboxState {
	w.t.Helper()
	resp, err := s.PodSandboxStatus(w.t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.Status.State
}

// ended waits until a container's end is on record.
func (w *world) ended(s *Server, id string) *cri.ContainerStatus {
	w.t.Helper()
	c, ok := s.containers.get(store.ContainerID(id))
	if !ok {
		w.t.Fatalf("no container %s", id)
	}
	select {
	case <-c.exited:
	case <-time.After(10 * time.Second):
		w.t.Fatal("the container does not end")
	}
	return w.status(s, id)
}
