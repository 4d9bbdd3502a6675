package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/store"
)

func TestFilters(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	web, webC := w.running(s, "web")
	db, dbC := w.running(s, "db")
	stopFor(t, s, dbC, 0)
	running := &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}
	for _, tt := range []struct {
		filter *cri.ContainerFilter
		want   string
	}{
		{nil, webC + dbC},
		{&cri.ContainerFilter{Id: webC[:10]}, webC},
		{&cri.ContainerFilter{PodSandboxId: db}, dbC},
		{&cri.ContainerFilter{PodSandboxId: db, State: running}, ""},
		{&cri.ContainerFilter{State: running}, webC},
		{&cri.ContainerFilter{LabelSelector: map[string]string{"app": "c"}}, webC + dbC},
		{&cri.ContainerFilter{LabelSelector: map[string]string{"app": "c", "tier": ""}}, ""}, // not there is not empty
	} {
		resp, err := s.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: tt.filter})
		got := ""
		for _, c := range resp.GetContainers() {
			got += c.Id
		}
		if got != tt.want || err != nil {
			t.Errorf("%v: %q, %v", tt.filter, got, err)
		}
	}
	if _, err := s.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: db}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		filter *cri.PodSandboxFilter
		want   string
	}{
		{nil, web + db},
		{&cri.PodSandboxFilter{Id: web[:9]}, web},
		{&cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}}, db},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, web},
	} {
		resp, err := s.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: tt.filter})
		got := ""
		for _, p := range resp.GetItems() {
			got += p.Id
		}
		if got != tt.want || err != nil {
			t.Errorf("%v: %q, %v", tt.filter, got, err)
		}
	}
}

func TestPodStatus(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod, ctr := w.running(s, "web")
	resp, err := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: pod[:12], Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	st := resp.Status
	if st.Network.Ip != "10.0.0.7" || len(st.Network.AdditionalIps) != 1 || st.Network.AdditionalIps[0].Ip != "fd00::7" ||
		st.State != cri.PodSandboxState_SANDBOX_READY || st.Linux.Namespaces.Options == nil || st.Metadata.Name != "web" {
		t.Errorf("status is %v", st)
	}
	if len(resp.ContainersStatuses) != 1 || resp.ContainersStatuses[0].Id != ctr || resp.Timestamp == 0 {
		t.Errorf("containers are %v", resp.ContainersStatuses)
	}
	var info podInfo
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"record", "cgroup", "dir", "namespaces", "files", "network", "init"} {
		if _, ok := info.Timings[step]; !ok {
			t.Errorf("no timing of step %s: %v", step, info.Timings)
		}
	}
	if info.Pid == 0 || info.CgroupParent != "/orlop/pod-"+pod || info.Notes == nil {
		t.Errorf("info is %+v", info)
	}
	c, err := s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var ci containerInfo
	if err := json.Unmarshal([]byte(c.Info["info"]), &ci); err != nil {
		t.Fatal(err)
	}
	if ci.Pid == 0 || ci.SandboxID != pod || len(ci.RuntimeSpec) < 10 || ci.Timings["monitor/libcontainer"] != 1 {
		t.Errorf("info is %+v", ci)
	}
	for _, id := range []string{"", "none"} {
		if _, err := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: id}); err == nil {
			t.Errorf("status of pod %q", id)
		}
		if _, err := s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: id}); err == nil {
			t.Errorf("status of container %q", id)
		}
	}
}

// The world has no hugetlb controller.
func TestWhatAContainerDidNotGetIsInItsStatusAndItsPods(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	req := createRequest(w.runPod(s, "web"), "c")
	req.Config.Linux = &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1 << 21}},
	}}
	ctr, err := s.CreateContainer(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	ofContainer, err := s.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: ctr.ContainerId, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	ofPod, err := s.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: req.PodSandboxId, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	const note = "hugepage limits left out: no hugetlb cgroup controller"
	for info, want := range map[string]string{ofContainer.Info["info"]: note, ofPod.Info["info"]: "container c: " + note} {
		var got struct{ Notes []string }
		if err := json.Unmarshal([]byte(info), &got); err != nil || !slices.Contains(got.Notes, want) {
			t.Errorf("notes are %q, %v; want %q", got.Notes, err, want)
		}
	}
}

func TestStatsOfWhatRuns(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	_, ctr := w.running(s, "web")
	list, err := s.ListContainerStats(t.Context(), nil)
	if err != nil || len(list.Stats) != 1 || list.Stats[0].Attributes.Id != ctr || list.Stats[0].WritableLayer.UsedBytes.Value != 9 {
		t.Errorf("stats are %v, %v", list, err)
	}
	pods, err := s.ListPodSandboxStats(t.Context(), nil)
	if err != nil || len(pods.Stats) != 1 || len(pods.Stats[0].Linux.Containers) != 1 || pods.Stats[0].Linux.Process.ProcessCount.Value != 2 {
		t.Errorf("stats are %v, %v", pods, err)
	}
	stopFor(t, s, ctr, 0)
	if list, _ := s.ListContainerStats(t.Context(), nil); len(list.Stats) > 0 {
		t.Errorf("a container that ended is listed: %v", list)
	}
	one, err := s.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: ctr})
	if err != nil || one.Stats.Cpu != nil || one.Stats.WritableLayer == nil {
		t.Errorf("stats are %v, %v", one, err)
	}
}

func TestUpdateKeepsWhatTheRequestLeavesOut(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	req := createRequest(pod, "c")
	req.Config.Linux = &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{
		CpuShares: 512, MemoryLimitInBytes: 1 << 28, OomScoreAdj: 500,
	}}
	resp, err := s.CreateContainer(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	update := &cri.UpdateContainerResourcesRequest{
		ContainerId: resp.ContainerId, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 29, OomScoreAdj: 999},
	}
	if _, err := s.UpdateContainerResources(t.Context(), update); err != nil {
		t.Fatal(err)
	}
	w.stop(s)
	s = w.server()
	if r := w.status(s, resp.ContainerId).Resources.Linux; r.CpuShares != 512 || r.MemoryLimitInBytes != 1<<29 || r.OomScoreAdj != 500 {
		t.Errorf("resources are %v; want the new limit, and the OOM score that its processes have", r)
	}
	w.fail("monitor.update before", errFault)
	update.Linux.MemoryLimitInBytes = 1
	if _, err := s.UpdateContainerResources(t.Context(), update); err == nil {
		t.Error("no error")
	}
	if r := w.status(s, resp.ContainerId).Resources.Linux; r.MemoryLimitInBytes != 1<<29 {
		t.Errorf("a failed update is shown: %v", r)
	}
}

// eventStream is the server's end of a stream of events.
type eventStream struct {
	grpc.ServerStream
	ctx  context.Context
	sent chan *cri.ContainerEventResponse
}

func (e *eventStream) Context() context.Context { return e.ctx }
func (e *eventStream) Send(r *cri.ContainerEventResponse) error {
	e.sent <- r
	return nil
}

// listen returns the events of a server, and what ends and waits for their stream.
func listen(t *testing.T, s *Server) (<-chan *cri.ContainerEventResponse, func()) {
	ctx, cancel := context.WithCancel(t.Context())
	stream := &eventStream{ctx: ctx, sent: make(chan *cri.ContainerEventResponse)}
	ended := make(chan error)
	go func() { ended <- s.GetContainerEvents(nil, stream) }()
	for !s.events.heard() {
		time.Sleep(time.Millisecond)
	}
	return stream.sent, func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the stream ended with %v", err)
		}
	}
}

// A program may have ended before its start is on record.
func TestEventOfStartComesFirst(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	ctr := w.create(s, pod, "quick")
	sent, end := listen(t, s)
	gate := make(chan struct{})
	w.mu.Lock()
	w.gates["monitor.start"] = gate
	w.mu.Unlock()
	var life sync.WaitGroup
	before := w.count("monitor.start") // of the pod's init
	life.Go(func() { w.start(s, ctr) })
	for w.count("monitor.start") == before {
		time.Sleep(time.Millisecond)
	}
	w.end(ctr, conmon.Exit{Code: 6})
	time.Sleep(50 * time.Millisecond) // long enough for what must not happen
	close(gate)
	for _, want := range []string{"CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT"} {
		if e := <-sent; e.ContainerEventType.String() != want {
			t.Errorf("event is %v, want %s", e.ContainerEventType, want)
		}
	}
	life.Wait()
	end()
	w.removePod(s, pod)
}

func TestEventsTellOfEachChange(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	sent, end := listen(t, s)
	var life sync.WaitGroup
	life.Go(func() {
		pod, ctr := w.running(s, "web")
		w.end(ctr, conmon.Exit{Code: 4})
		w.ended(s, ctr)
		w.removePod(s, pod)
	})
	for _, want := range []string{
		"pod CREATED SANDBOX_READY", "pod STARTED SANDBOX_READY",
		"CREATED SANDBOX_READY 0", "STARTED SANDBOX_READY 0", "STOPPED SANDBOX_READY 4",
		"pod STOPPED SANDBOX_NOTREADY 4", "DELETED SANDBOX_NOTREADY", "pod DELETED SANDBOX_NOTREADY",
	} {
		e := <-sent
		got := strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
		if e.ContainerId == e.PodSandboxStatus.GetId() {
			got = "pod " + got
		}
		got += " " + e.PodSandboxStatus.GetState().String()
		if len(e.ContainersStatuses) > 0 {
			got += fmt.Sprint(" ", e.ContainersStatuses[0].ExitCode)
		}
		if got != want || e.PodSandboxStatus.GetMetadata().GetUid() != "uid" { // by which the kubelet finds its pod
			t.Errorf("event is %q of %v, want %q", got, e.PodSandboxStatus, want)
		}
	}
	life.Wait()
	end()
}

// Those who follow events need not wait for what is freed in the background either.
func TestEventOfAStopThatIsNotFinished(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	pod := w.runPod(s, "web")
	sent, end := listen(t, s)
	w.fail("network.del before", errFault)
	stopped := make(chan error)
	go func() {
		_, err := s.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: pod})
		stopped <- err
	}()
	if e := <-sent; e.ContainerId != pod || e.ContainerEventType != cri.ContainerEventType_CONTAINER_STOPPED_EVENT ||
		e.PodSandboxStatus.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("event is %v", e)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	end()
	w.heal()
	w.removePod(s, pod)
}

func TestAClientThatDoesNotReadIsDropped(t *testing.T) {
	var es events
	slow, err := es.subscribe()
	if err != nil {
		t.Fatal(err)
	}
	for range eventBuffer + 1 {
		es.send(&cri.ContainerEventResponse{})
	}
	<-slow.ended
	if !errors.Is(slow.err, errSlow) || es.heard() {
		t.Errorf("ended with %v", slow.err)
	}
	es.unsubscribe(slow, nil) // again, by its own handler
	es.close()
	if _, err := es.subscribe(); !errors.Is(err, errShutdown) {
		t.Errorf("subscribe after close: %v", err)
	}
}

func TestStatusAndVersions(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	st, err := s.Status(t.Context(), &cri.StatusRequest{Verbose: true})
	if err != nil || len(st.Status.Conditions) != 2 || len(st.RuntimeHandlers) != 2 || st.Info["pending"] != "[]" {
		t.Errorf("status is %v, %v", st, err)
	}
	v, err := s.Version(t.Context(), nil)
	if err != nil || v.RuntimeName != "orlop" || v.RuntimeVersion != "test" || v.RuntimeApiVersion != "v1" {
		t.Errorf("version is %v, %v", v, err)
	}
	rc, err := s.RuntimeConfig(t.Context(), nil)
	if err != nil || rc.Linux.CgroupDriver != cri.CgroupDriver_CGROUPFS {
		t.Errorf("config is %v, %v", rc, err)
	}
}

func TestImageInUse(t *testing.T) {
	w := newWorld(t)
	s := w.server()
	if s.ImageInUse("1d") {
		t.Error("in use by nothing")
	}
	pod := w.runPod(s, "web")
	w.create(s, pod, "c")
	if !s.ImageInUse("1d") || s.ImageInUse("other") {
		t.Error("not in use by its container, or another is")
	}
}

func TestFindByPrefix(t *testing.T) {
	tab := newTable[store.PodID, *int]()
	a, b := new(int), new(int)
	tab.add("aab", a)
	tab.add("aac", b)
	if got, err := tab.find("aab"); got != a || err != nil {
		t.Errorf("whole ID: %v", err)
	}
	if _, err := tab.find("aa"); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("ambiguous: %v", err)
	}
	if _, err := tab.find("b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
}

func BenchmarkListContainers(b *testing.B) {
	for _, pods := range []int{1, 50, 250} {
		b.Run(fmt.Sprint(pods), func(b *testing.B) {
			w := newWorld(b)
			s := w.server()
			for i := range pods {
				w.create(s, w.runPod(s, fmt.Sprint(i)), "c")
			}
			for b.Loop() {
				if resp, err := s.ListContainers(b.Context(), nil); err != nil || len(resp.Containers) != pods {
					b.Fatal(err)
				}
			}
		})
	}
}
