package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/cni"
	"github.com/orlop/orlop/server/podfiles"
	"github.com/orlop/orlop/server/store"
)

func TestAPodsWholeLifeLeavesNothing(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	ctr := w.create(s, pod, "c")
	if st := w.status(s, ctr); st.State != cri.ContainerState_CONTAINER_CREATED || st.StartedAt != 0 || st.CreatedAt == 0 {
		t.Errorf("after create: %v", st)
	}
	w.start(s, ctr)
	if _, err := s.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: ctr}); !errors.Is(err, store.ErrState) {
		t.Errorf("start of a running container: %v", err)
	}
	st := w.status(s, ctr)
	if st.State != cri.ContainerState_CONTAINER_RUNNING || st.StartedAt == 0 || st.User.Linux.Uid != 1000 ||
		st.ImageRef != "registry.test/a@sha256:1" || st.ImageId != "1d" || st.StopSignal != cri.Signal_SIGNAL_SIGINT ||
		st.Mounts[0].Image.ImageRef != "1d" {
		t.Errorf("after start: %v", st)
	}
	if got := w.count("monitor.start"); got != 2 { // the pod's init and the container
		t.Errorf("%d starts", got)
	}
	w.end(ctr, conmon.Exit{Code: 3})
	if st := w.ended(s, ctr); st.ExitCode != 3 || st.Reason != "Error" || st.FinishedAt == 0 {
		t.Errorf("after its end: %v", st)
	}
	if _, err := s.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	if got := w.podState(s, pod); got != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after stop: %v", got)
	}
	w.removePod(s, pod)
	w.wantNothingLeft()
	w.removePod(s, pod) // succeeds for what is not there
	if l, err := s.records.Load(); err != nil || len(l.Pods)+len(l.Containers) > 0 {
		t.Errorf("on record: %+v, %v", l, err)
	}
}

// podFaults are the operations of RunPodSandbox, and those of CreateContainer.
var (
	podFaults = []string{
		"cgroup.make", "ns.make", "files.make", "network.add", "monitor.create", "monitor.start",
	}
	containerFaults = []string{"rootfs.make", "volume.mount", "lookup", "monitor.create"}
)

func TestEachBrokenPodStepLeavesNothing(t *testing.T) {
	for _, op := range podFaults {
		for _, when := range []string{" before", " after"} {
			t.Run(op+when, func(t *testing.T) {
				w := newWorld(t)
				s := w.server()
				w.fail(op+when, errFault)
				_, err := s.RunPodSandbox(t.Context(), runRequest("web"))
				if !errors.Is(err, errFault) || !strings.Contains(err.Error(), "pod default/web: ") {
					t.Errorf("error is %v", err)
				}
				w.wantNothingLeft()
				if len(s.pods.all()) > 0 {
					t.Error("the pod is still known")
				}
				w.heal()
				w.removePod(s, w.runPod(s, "web")) // the name is free
				w.wantNothingLeft()
			})
		}
	}
}

func TestEachBrokenContainerStepLeavesOnlyThePod(t *testing.T) {
	for _, op := range containerFaults {
		for _, when := range []string{" before", " after"} {
			t.Run(op+when, func(t *testing.T) {
				w := newWorld(t)
				s := w.server()
				pod := w.runPod(s, "web")
				before := w.left()
				w.fail(op+when, errFault)
				if _, err := s.CreateContainer(t.Context(), createRequest(pod, "c")); !errors.Is(err, errFault) {
					t.Errorf("error is %v", err)
				}
				if now := w.left(); strings.Join(now, " ") != strings.Join(before, " ") {
					t.Errorf("left behind: %q, was %q", now, before)
				}
				w.heal()
				w.create(s, pod, "c") // the name is free
				w.removePod(s, pod)
				w.wantNothingLeft()
			})
		}
	}
}

// A crash is a daemon whose steps stop where they are: nothing undoes them but the next daemon.
func TestACrashAtEachStepIsUndoneByTheNextDaemon(t *testing.T) {
	undo := []string{"cgroup.remove", "ns.delete", "files.remove", "network.del", "monitor.delete", "rootfs.delete", "volume.unmount"}
	for _, op := range append(podFaults, containerFaults...) {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t)
			s := w.server()
			if op == "rootfs.make" || op == "volume.mount" || op == "lookup" {
				pod := w.runPod(s, "web")
				breakAll(w, op, undo)
				if _, err := s.CreateContainer(t.Context(), createRequest(pod, "c")); err == nil {
					t.Fatal("no error")
				}
			} else {
				breakAll(w, op, undo)
				if _, err := s.RunPodSandbox(t.Context(), runRequest("web")); err == nil {
					t.Fatal("no error")
				}
			}
			w.stop(s)
			w.heal()
			s = w.server()
			for _, p := range s.pods.all() {
				w.removePod(s, string(p.id))
			}
			settle(t, s)
			w.wantNothingLeft()
		})
	}
}

func breakAll(w *world, op string, undo []string) {
	w.fail(op+" after", errFault)
	for _, u := range undo {
		w.fail(u+" before", errFault)
	}
}

// settle waits for what is done in the background.
func settle(t *testing.T, s *Server) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for _, p := range s.pods.all() {
		select {
		case <-s.removePod(p).done:
		case <-deadline:
			t.Fatal("background work does not end")
		}
	}
	for _, c := range s.containers.all() {
		select {
		case <-s.removeContainer(c).done:
		case <-deadline:
			t.Fatal("background work does not end")
		}
	}
}

func TestARepeatedCreateJoinsTheOneUnderWay(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	gate := make(chan struct{})
	w.gates["network.add"] = gate
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := s.RunPodSandbox(short, runRequest("web"))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "pod default/web: still in step network since ") ||
		!strings.Contains(err.Error(), "repeat the request to join it") {
		t.Errorf("error of a caller who does not wait: %v", err)
	}
	if list, _ := s.ListPodSandbox(t.Context(), nil); len(list.Items) > 0 {
		t.Error("a pod that is being made is listed")
	}
	other := runRequest("web")
	other.Config.Hostname = "other"
	if _, err := s.RunPodSandbox(t.Context(), other); !errors.Is(err, store.ErrExists) {
		t.Errorf("another config under the same name: %v", err)
	}
	ids := make(chan string)
	for range 3 {
		go func() {
			resp, err := s.RunPodSandbox(t.Context(), runRequest("web"))
			if err != nil {
				t.Error(err)
			}
			ids <- resp.GetPodSandboxId()
		}()
	}
	close(gate)
	first := <-ids
	if a, b := <-ids, <-ids; a != first || b != first {
		t.Errorf("three pods: %s %s %s", first, a, b)
	}
	if again := w.runPod(s, "web"); again != first { // also when it is done
		t.Errorf("a fourth pod: %s", again)
	}
	if n := w.count("network.add"); n != 1 {
		t.Errorf("%d ADDs", n)
	}
	ctr := w.create(s, first, "c")
	if again := w.create(s, first, "c"); again != ctr {
		t.Errorf("a second container: %s and %s", ctr, again)
	}
}

func TestStopOfAPodGivesUpCreatesUnderWay(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	w.gates["rootfs.make"] = make(chan struct{}) // hangs until it is cancelled
	created := make(chan error)
	go func() {
		_, err := s.CreateContainer(t.Context(), createRequest(pod, "c"))
		created <- err
	}()
	for w.count("rootfs.make") == 0 {
		time.Sleep(time.Millisecond)
	}
	w.removePod(s, pod)
	if err := <-created; !errors.Is(err, errGivenUp) {
		t.Errorf("the create says %v", err)
	}
	w.wantNothingLeft()
	if _, err := s.CreateContainer(t.Context(), createRequest(pod, "d")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("create in a pod that is gone: %v", err)
	}
}

func TestAPanicInAStepEndsThatRequestAlone(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	s.Network = panics{s.Network}
	if _, err := s.RunPodSandbox(t.Context(), runRequest("web")); err == nil || !strings.Contains(err.Error(), "network: internal error: boom") {
		t.Errorf("error is %v", err)
	}
	w.wantNothingLeft()
}

type panics struct{ Network }

func (panics) Add(context.Context, cni.Pod) (cni.Result, error) { panic("boom") }

func TestAPodOnTheHostsNetworkHasNone(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	req := runRequest("web")
	req.Config.Linux.SecurityContext = &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
		Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER,
	}}
	resp, err := s.RunPodSandbox(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if w.count("network.add")+w.count("monitor.create") > 0 {
		t.Error("it was connected, or has an init")
	}
	p, _ := s.pods.get(store.PodID(resp.PodSandboxId))
	if host, _ := os.Hostname(); p.files().Hostname != host || !p.files().HostNetwork {
		t.Errorf("its files are %+v, want the node's name and hosts", p.files())
	}
	st, err := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: resp.PodSandboxId})
	if err != nil || st.Status.Network.Ip != "" || st.Status.Linux.Namespaces.Options.Network != cri.NamespaceMode_NODE {
		t.Errorf("status is %v, %v", st, err)
	}
	w.removePod(s, resp.PodSandboxId)
	w.wantNothingLeft()
}

// The kubelet mounts a hosts file of its own; other clients count on the runtime's.
func TestAHostsFileIsMountedUnlessTheRequestDoes(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	p, _ := s.pods.get(store.PodID(pod))
	for name, mounts := range map[string][]*cri.Mount{
		podfiles.Hosts(p.dir): nil,
		"/kubelet/etc-hosts":  {{ContainerPath: "/etc/hosts", HostPath: "/kubelet/etc-hosts"}},
	} {
		req := createRequest(pod, filepath.Base(name))
		req.Config.Mounts = mounts
		resp, err := s.CreateContainer(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		var sources []string
		for _, m := range w.created[resp.ContainerId].Spec.Mounts {
			if m.Destination == "/etc/hosts" {
				sources = append(sources, m.Source)
			}
		}
		if !slices.Equal(sources, []string{name}) {
			t.Errorf("/etc/hosts is mounted from %q, want %s", sources, name)
		}
	}
}

func TestASharedCgroupGoesWithTheLastPodInIt(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	first := w.runPod(s, "first")
	second := w.runPod(s, "second")
	w.removePod(s, first)
	w.stop(s)
	s = w.server()
	third := w.runPod(s, "third")
	w.removePod(s, second)
	w.removePod(s, third)
	w.wantNothingLeft()
}
