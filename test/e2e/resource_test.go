package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

func TestResources(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod, criclient.Resources(&cri.LinuxContainerResources{
		CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500, CpusetCpus: "0", CpusetMems: "0",
	}))
	files := []struct{ v1, v2, want1, want2 string }{
		{"memory/memory.limit_in_bytes", "memory.max", "67108864", "67108864"},
		{"cpu/cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"},
		{"cpuset/cpuset.cpus", "cpuset.cpus", "0", "0"},
	}
	for _, f := range files {
		want := f.want1
		if kernel.Has(kernel.CgroupV2) {
			want = f.want2
		}
		if got := cgroupFile(t, ctr, f.v1, f.v2); got != want {
			t.Errorf("%s or %s: %q; want %q", f.v1, f.v2, got, want)
		}
	}
	if kernel.Has(kernel.CgroupV1) {
		if got := cgroupFile(t, ctr, "cpu/cpu.shares", ""); got != "512" {
			t.Errorf("cpu.shares %s; want 512", got)
		}
	}
	if f := parseFacts(t, ctr.Exec(t, "/probe", "facts")); f.OOMScoreAdj != 500 {
		t.Errorf("oom_score_adj %d; want 500", f.OOMScoreAdj)
	}
	if own != nil {
		if r := ctr.Status(t).Resources.GetLinux(); r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuQuota() != 50_000 {
			t.Errorf("resources in the status: %v", r)
		}
	}
}

// Limits that this kernel has no controller for are noted, in the status of the container and in the pod's.
func TestRareResources(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod, criclient.Resources(&cri.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "50331648"},
	}))
	notes := notesOf(t, ctr)
	for _, f := range []struct {
		v1, v2, want1, want2, note string
	}{
		{"memory/memory.memsw.limit_in_bytes", "memory.swap.max", "100663296", "33554432", "memory and swap limit 100663296 left out"},
		{"hugetlb/hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max", "4194304", "4194304", "hugepage limits left out: no hugetlb"},
		{"", "memory.high", "", "50331648", "memory.high left out: this machine runs cgroup v1"},
	} {
		name, want := f.v1, f.want1
		if kernel.Has(kernel.CgroupV2) {
			name, want = f.v2, f.want2
		}
		there := false
		if name != "" {
			r, err := ctr.TryExec(t.Context(), 0, "test", "-e", "/sys/fs/cgroup/"+name)
			there = err == nil && r.ExitCode == 0
		}
		noted := strings.Contains(notes, f.note)
		if there == noted {
			t.Errorf("%s is there: %v; notes: %s", name, there, notes)
		}
		if there {
			if got := cgroupFile(t, ctr, name, name); got != want {
				t.Errorf("%s is %s; want %s", name, got, want)
			}
		}
	}
}

// notesOf are the notes on a container in the verbose status of its pod; those in its own must be among them.
func notesOf(t *testing.T, ctr *criclient.Container) string {
	t.Helper()
	_, info := ctr.Verbose(t)
	ofPod, err := node.Runtime.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: ctr.Pod.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var container, pod struct{ Notes []string }
	if err := errors.Join(json.Unmarshal([]byte(info["info"]), &container), json.Unmarshal([]byte(ofPod.Info["info"]), &pod)); err != nil {
		t.Fatal(err)
	}
	for _, note := range container.Notes {
		if !slices.Contains(pod.Notes, "container "+ctr.Config.Metadata.Name+": "+note) {
			t.Errorf("the pod's status lacks %q: %q", note, pod.Notes)
		}
	}
	return strings.Join(pod.Notes, "\n")
}

// A container has as many processes and threads as the node lets it, and no more.
func TestPidsLimit(t *testing.T) {
	t.Parallel()
	kernel.Require(t, kernel.Controller("pids"))
	d := another(t, map[string]string{"container": "pids_limit = 30\n"})
	ctr := sleeper(t, d.Client.Pod(t, criclient.HostNetwork))
	if got := cgroupFile(t, ctr, "pids/pids.max", "pids.max"); got != "30" {
		t.Errorf("pids.max is %s; want 30", got)
	}
	const bomb = "i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; echo all"
	r, err := ctr.TryExec(t.Context(), 0, "sh", "-c", bomb)
	if err != nil || strings.Contains(string(r.Stdout), "all") || !strings.Contains(string(r.Stderr), "fork") {
		t.Errorf("60 processes under a limit of 30: %v, %v; want a fork to fail", r, err)
	}
}

func TestUpdateResources(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod, criclient.Resources(&cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100_000, CpuQuota: 50_000}))
	_, err := node.Runtime.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{
		ContainerId: ctr.ID, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
	})
	if err != nil {
		t.Fatalf("UpdateContainerResources: %v", err)
	}
	if got := cgroupFile(t, ctr, "memory/memory.limit_in_bytes", "memory.max"); got != "100663296" {
		t.Errorf("memory limit after the update: %s; want 100663296", got)
	}
	if got := cgroupFile(t, ctr, "cpu/cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, "50000") {
		t.Errorf("the update of memory changed the CPU quota to %s", got)
	}
}

// A device that the config does not give cannot be used, whatever nodes the container makes.
func TestDevices(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	loop, err := os.Open("/dev/loop-control") // loads its module, which a container may not
	if err != nil {
		kernel.Skip(t, "no /dev/loop-control")
	}
	defer loop.Close()
	device := func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/loop-control", ContainerPath: "/dev/given", Permissions: "rw"}}
	}
	with := sleeper(t, pod, device)
	r, err := with.TryExec(t.Context(), 0, "sh", "-c", "exec 3<>/dev/given")
	if err != nil || r.ExitCode != 0 {
		t.Errorf("open of a device that was given: %v, %v", r, err)
	}
	mknod := criclient.Security(func(s *securityContext) { s.Capabilities = &cri.Capability{AddCapabilities: []string{"MKNOD"}} })
	without := sleeper(t, pod, mknod)
	r, err = without.TryExec(t.Context(), 0, "sh", "-c", "mknod /tmp/loop c 10 237 && exec 3<>/tmp/loop")
	if err != nil || r.ExitCode == 0 {
		t.Errorf("open of a device that was not given: %v, %v; want it refused", r, err)
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "shm"} {
		if r, err := without.TryExec(t.Context(), 0, "test", "-e", "/dev/"+name); name != "tty" && (err != nil || r.ExitCode != 0) {
			t.Errorf("/dev/%s is missing: %v", name, err)
		}
	}
	if _, err := pod.TryCreate(t.Context(), pod.ContainerConfig(probe, func(c *cri.ContainerConfig) {
		c.Devices = []*cri.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "rw"}}
	})); err == nil {
		t.Error("a device that is not there was accepted")
	}
}

// The pod's cgroup is a child of the parent that the config names, and the container's a child of it.
func TestCgroupParent(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	raw, err := os.ReadFile("/proc/" + itoa(ctr.Pid(t)) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	parent := filepath.Base(pod.Config.Linux.CgroupParent)
	if !strings.Contains(string(raw), "/"+parent+"/") || !strings.Contains(string(raw), ctr.ID) {
		t.Errorf("cgroups of the container:\n%s\nwant them below %s and with the ID", raw, parent)
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t)
	ctr := pod.Container(t, probe, criclient.Run("/probe", "eat", "20"))
	ctr.WaitLog(t, "ate")
	ctr.Sh(t, "dd if=/dev/zero of=/tmp/written bs=1M count=3 2>/dev/null; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	var stats *cri.ContainerStats
	criclient.Eventually(t, 30*time.Second, "stats with the layer that was written", func() bool {
		r, err := node.Runtime.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: ctr.ID})
		if err != nil {
			t.Fatalf("ContainerStats: %v", err)
		}
		stats = r.Stats
		return stats.GetWritableLayer().GetUsedBytes().GetValue() >= 3<<20
	})
	if stats.Attributes.GetId() != ctr.ID || stats.Attributes.GetMetadata().GetName() != ctr.Config.Metadata.Name {
		t.Errorf("attributes %v", stats.Attributes)
	}
	if used := stats.Memory.GetWorkingSetBytes().GetValue(); used < 20<<20 || used > 100<<20 {
		t.Errorf("working set %d bytes of a program that holds 20 MiB", used)
	}
	if stats.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || stats.Cpu.Timestamp == 0 {
		t.Errorf("CPU %v", stats.Cpu)
	}
	if own == nil {
		return
	}
	list, err := node.Runtime.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{PodSandboxId: pod.ID}})
	if err != nil || len(list.Stats) != 1 || list.Stats[0].Attributes.Id != ctr.ID {
		t.Errorf("ListContainerStats of the pod: %v, %v", list, err)
	}
	ps, err := node.Runtime.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{PodSandboxId: pod.ID})
	if err != nil || ps.Stats.Linux.GetMemory().GetWorkingSetBytes().GetValue() < 20<<20 ||
		ps.Stats.Linux.GetNetwork().GetDefaultInterface().GetName() == "" || len(ps.Stats.Linux.GetContainers()) != 1 {
		t.Errorf("PodSandboxStats: %v, %v", ps, err)
	}
	pods, err := node.Runtime.ListPodSandboxStats(t.Context(), &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: pod.ID}})
	if err != nil || len(pods.Stats) != 1 {
		t.Errorf("ListPodSandboxStats of one pod: %v, %v", pods, err)
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	ours(t)
	events := watch(t)
	pod := node.Pod(t, criclient.HostNetwork)
	// The server may take the watcher in a moment after the call; events before that are not for it.
	criclient.Eventually(t, 20*time.Second, "the first event", func() bool {
		pod.Create(t, pod.ContainerConfig(probe))
		return len(events) > 0
	})
	ctr := pod.Container(t, probe, criclient.Shell("exit 6"))
	ctr.WaitExit(t)
	ctr.Remove(t)
	pod.Remove(t)
	const created, started = cri.ContainerEventType_CONTAINER_CREATED_EVENT, cri.ContainerEventType_CONTAINER_STARTED_EVENT
	const stopped, deleted = cri.ContainerEventType_CONTAINER_STOPPED_EVENT, cri.ContainerEventType_CONTAINER_DELETED_EVENT
	wantEvents(t, events, pod.ID, ctr.ID, created, started, stopped, deleted)
	wantEvents(t, events, pod.ID, pod.ID, stopped, deleted) // its start came before the container's
}

// wantEvents fails the test unless the events of a container, or of a pod itself, come in this order. It drops others.
func wantEvents(t *testing.T, events <-chan *cri.ContainerEventResponse, pod, id string, all ...cri.ContainerEventType) {
	t.Helper()
	deadline := time.After(kernel.Patient(20 * time.Second))
	for _, want := range all {
		for got := false; !got; {
			select {
			case e := <-events:
				if got = e.ContainerId == id; !got {
					continue
				}
				if e.ContainerEventType != want || e.PodSandboxStatus.GetId() != pod {
					t.Errorf("event %v with the status of pod %q; want %v, %s", e.ContainerEventType, e.PodSandboxStatus.GetId(), want, pod)
				}
			case <-deadline:
				t.Fatalf("no event %v", want)
			}
		}
	}
}

// watch receives events until the end of the test.
func watch(t *testing.T) <-chan *cri.ContainerEventResponse {
	stream, err := node.Runtime.GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan *cri.ContainerEventResponse, 10_000)
	go func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				return // the test has ended, or waits in vain and says so
			}
			events <- e
		}
	}()
	return events
}
