package stats

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	api "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// runtime has one pod with one container. What its answers lack is Unimplemented.
type fakeRuntime struct {
	cri.RuntimeServiceClient
	cri.ImageServiceClient
	pods        []*cri.PodSandboxStats
	containers  []*cri.ContainerStats
	descriptors []*cri.MetricDescriptor
	metrics     []*cri.PodSandboxMetrics
	mountpoint  string
	err         error
	asked       int
}

var errUnimplemented = status.Error(codes.Unimplemented, "no")

func (f *fakeRuntime) ListPodSandboxStats(context.Context, *cri.ListPodSandboxStatsRequest, ...grpc.CallOption) (*cri.ListPodSandboxStatsResponse, error) {
	f.asked++
	switch {
	case f.err != nil:
		return nil, f.err
	case f.pods == nil:
		return nil, errUnimplemented
	}
	return &cri.ListPodSandboxStatsResponse{Stats: f.pods}, nil
}

func (f *fakeRuntime) ListContainerStats(context.Context, *cri.ListContainerStatsRequest, ...grpc.CallOption) (*cri.ListContainerStatsResponse, error) {
	return &cri.ListContainerStatsResponse{Stats: f.containers}, nil
}

func (f *fakeRuntime) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest, ...grpc.CallOption) (*cri.ListMetricDescriptorsResponse, error) {
	return &cri.ListMetricDescriptorsResponse{Descriptors: f.descriptors}, nil
}

func (f *fakeRuntime) ListPodSandboxMetrics(context.Context, *cri.ListPodSandboxMetricsRequest, ...grpc.CallOption) (*cri.ListPodSandboxMetricsResponse, error) {
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: f.metrics}, nil
}

func (f *fakeRuntime) ImageFsInfo(context.Context, *cri.ImageFsInfoRequest, ...grpc.CallOption) (*cri.ImageFsInfoResponse, error) {
	return &cri.ImageFsInfoResponse{ImageFilesystems: []*cri.FilesystemUsage{{
		FsId: &cri.FilesystemIdentifier{Mountpoint: f.mountpoint}, UsedBytes: u(77), InodesUsed: u(7),
	}}}, nil
}

func u(v uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: v} }

const second = int64(time.Second)

func labels() map[string]string {
	return map[string]string{
		"io.kubernetes.pod.uid": "uid", "io.kubernetes.pod.name": "p", "io.kubernetes.pod.namespace": "ns", "io.kubernetes.container.name": "c",
	}
}

func containerStats() *cri.ContainerStats {
	return &cri.ContainerStats{
		Attributes:    &cri.ContainerAttributes{Id: "id", Labels: labels()},
		Cpu:           &cri.CpuUsage{Timestamp: 5 * second, UsageCoreNanoSeconds: u(1_500_000_000), Psi: &cri.PsiStats{Some: &cri.PsiData{Avg10: 1.5}}},
		Memory:        &cri.MemoryUsage{Timestamp: 5 * second, WorkingSetBytes: u(100), UsageBytes: u(120), RssBytes: u(90)},
		Swap:          &cri.SwapUsage{Timestamp: 5 * second, SwapUsageBytes: u(3)},
		WritableLayer: &cri.FilesystemUsage{Timestamp: 5 * second, UsedBytes: u(1000), InodesUsed: u(10)},
	}
}

func podStats() *cri.PodSandboxStats {
	return &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{Id: "sandbox", Labels: labels()},
		Linux: &cri.LinuxPodSandboxStats{
			Cpu:     &cri.CpuUsage{Timestamp: 6 * second, UsageCoreNanoSeconds: u(2_000_000_000), UsageNanoCores: u(11)},
			Memory:  &cri.MemoryUsage{Timestamp: 6 * second, WorkingSetBytes: u(110)},
			Process: &cri.ProcessUsage{ProcessCount: u(4)},
			Network: &cri.NetworkUsage{
				DefaultInterface: &cri.NetworkInterfaceUsage{Name: "eth0", RxBytes: u(21), TxBytes: u(22)},
				Interfaces:       []*cri.NetworkInterfaceUsage{{Name: "eth0", RxBytes: u(21), TxBytes: u(22)}, {Name: "net1", RxBytes: u(31)}},
			},
			Containers: []*cri.ContainerStats{containerStats()},
		},
	}
}

var started = metav1.NewTime(time.Unix(3, 500_000_000))

func knownPod() *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "uid"},
		Spec: v1.PodSpec{Volumes: []v1.Volume{
			{Name: "disk", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			{Name: "memory", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
		}},
		Status: v1.PodStatus{StartTime: &started, ContainerStatuses: []v1.ContainerStatus{{
			Name: "c", ContainerID: "cri://id", Image: "img", State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: started}},
		}}},
	}
}

func volumes(uid types.UID) []api.VolumeStats {
	if uid != "uid" {
		return nil
	}
	return []api.VolumeStats{
		{Name: "disk", FsStats: api.FsStats{UsedBytes: new(uint64(500)), InodesUsed: new(uint64(5))}},
		{Name: "memory", FsStats: api.FsStats{UsedBytes: new(uint64(9000))}},
	}
}

// files writes fixtures.
func files(t *testing.T, all map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range all {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func proc(t *testing.T) string {
	return files(t, map[string]string{
		"meminfo":                "MemTotal: 1000 kB\nMemFree: 300 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n",
		"loadavg":                "0.01 0.02 0.03 2/345 678\n",
		"sys/kernel/pid_max":     "32768\n",
		"sys/kernel/threads-max": "5000\n",
		"self/net/route":         "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\nens3\t0000A8C0\t0\t1\t0\t0\t0\t00FFFFFF\t0\nens3\t00000000\t0100A8C0\t3\t0\t0\t0\t00000000\t0\n",
		"self/net/dev": "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs\n" +
			"    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  ens3: 100 1 2 0 0 0 0 0 200 1 3 0 0 0 0 0\n  cni0:7 1 0 0 0 0 0 0 8 1 0 0 0 0 0 0\n",
	})
}

func cgroupV1(t *testing.T) string {
	stat := "total_inactive_file 40960\ntotal_rss 2048\ntotal_swap 512\ntotal_pgfault 6\ntotal_pgmajfault 1\nhierarchical_memory_limit "
	return files(t, map[string]string{
		"memory/memory.stat":                    stat + "9223372036854771712\n",
		"memory/memory.usage_in_bytes":          "204800\n",
		"cpuacct/cpuacct.usage":                 "9000000000\n",
		"memory/kubepods/memory.stat":           stat + "102400\n",
		"memory/kubepods/memory.usage_in_bytes": "51200\n",
		"cpuacct/kubepods/cpuacct.usage":        "7000000000\n",
	})
}

func cgroupV2(t *testing.T) string {
	stat := "anon 2048\ninactive_file 40960\npgfault 6\npgmajfault 1\n"
	return files(t, map[string]string{
		"cgroup.controllers":           "cpu memory pids\n",
		"cpu.stat":                     "usage_usec 9000000\n",
		"memory.stat":                  stat,
		"kubepods/cpu.stat":            "usage_usec 7000000\n",
		"kubepods/memory.stat":         stat,
		"kubepods/memory.current":      "51200\n",
		"kubepods/memory.max":          "102400\n",
		"kubepods/memory.swap.current": "512\n",
	})
}

func provider(t *testing.T, f *fakeRuntime) *Provider {
	t.Helper()
	f.mountpoint = t.TempDir()
	return New(Config{
		Node: "n", Runtime: f, Images: f, Pods: func() []*v1.Pod { return []*v1.Pod{knownPod()} }, Volumes: volumes,
		RootDir: t.TempDir(), PodsDir: "/kubepods", Cgroups: cgroupV1(t), Proc: proc(t),
		PodLogs: files(t, map[string]string{"ns_p_uid/c/0.log": "12345", "ns_p_uid/c/0.log.20260102-030405.gz": "123"}),
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
}

// ignored are times of measurements that were made here and now.
var ignored = cmp.Options{
	cmpopts.IgnoreFields(api.FsStats{}, "Time"),
	cmpopts.EquateEmpty(),
}

func TestPods(t *testing.T) {
	n := func(v uint64) *uint64 { return &v }
	want := api.PodStats{
		PodRef: api.PodReference{Namespace: "ns", Name: "p", UID: "uid"}, StartTime: started,
		CPU:    &api.CPUStats{Time: at(6 * second), UsageCoreNanoSeconds: n(2_000_000_000), UsageNanoCores: n(11)},
		Memory: &api.MemoryStats{Time: at(6 * second), WorkingSetBytes: n(110)},
		Swap:   &api.SwapStats{Time: at(5 * second), SwapUsageBytes: n(3)},
		Network: &api.NetworkStats{Time: at(0),
			InterfaceStats: api.InterfaceStats{Name: "eth0", RxBytes: n(21), TxBytes: n(22)},
			Interfaces:     []api.InterfaceStats{{Name: "eth0", RxBytes: n(21), TxBytes: n(22)}, {Name: "net1", RxBytes: n(31)}}},
		ProcessStats: &api.ProcessStats{ProcessCount: n(4)},
		Containers: []api.ContainerStats{{
			Name: "c", StartTime: started,
			CPU:    &api.CPUStats{Time: at(5 * second), UsageCoreNanoSeconds: n(1_500_000_000), PSI: &api.PSIStats{Some: api.PSIData{Avg10: 1.5}}},
			Memory: &api.MemoryStats{Time: at(5 * second), WorkingSetBytes: n(100), UsageBytes: n(120), RSSBytes: n(90)},
			Swap:   &api.SwapStats{Time: at(5 * second), SwapUsageBytes: n(3)},
			Rootfs: &api.FsStats{UsedBytes: n(1000), InodesUsed: n(10)},
			Logs:   &api.FsStats{UsedBytes: n(8), InodesUsed: n(2)},
		}},
		VolumeStats:      volumes("uid"),
		EphemeralStorage: &api.FsStats{UsedBytes: n(1508), InodesUsed: n(17)}, // not the volume in memory
	}
	other := &cri.PodSandboxStats{Attributes: &cri.PodSandboxAttributes{Id: "of somebody else"}, Linux: &cri.LinuxPodSandboxStats{}}
	s, err := provider(t, &fakeRuntime{pods: []*cri.PodSandboxStats{podStats(), other}}).Summary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]api.PodStats{want}, s.Pods, ignored); diff != "" {
		t.Error(diff)
	}

	// A runtime that has stats of containers only: what it does not say of the pod is the sum of theirs.
	s, err = provider(t, &fakeRuntime{containers: []*cri.ContainerStats{containerStats(), containerStats()}}).Summary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one := want.Containers[0]
	want.Containers = append(want.Containers, one)
	want.CPU = &api.CPUStats{Time: at(5 * second), UsageCoreNanoSeconds: n(3_000_000_000)}
	want.Memory = &api.MemoryStats{Time: at(5 * second), WorkingSetBytes: n(200), UsageBytes: n(240), RSSBytes: n(180)}
	want.Swap = &api.SwapStats{Time: at(5 * second), SwapUsageBytes: n(6)}
	want.Network, want.ProcessStats = nil, nil
	want.EphemeralStorage = &api.FsStats{UsedBytes: n(2516), InodesUsed: n(29)}
	if diff := cmp.Diff([]api.PodStats{want}, s.Pods, ignored); diff != "" {
		t.Error(diff)
	}
}

func TestNode(t *testing.T) {
	for name, cgroups := range map[string]string{"v1": cgroupV1(t), "v2": cgroupV2(t)} {
		t.Run(name, func(t *testing.T) {
			f := &fakeRuntime{pods: []*cri.PodSandboxStats{}}
			p := provider(t, f)
			p.cfg.Cgroups = cgroups
			s, err := p.Summary(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			node, used := s.Node, uint64(204800)
			if name == "v2" {
				used = 700 << 10 // the root has no number of its own
			}
			got := map[string]uint64{
				"cpu": *node.CPU.UsageCoreNanoSeconds, "usage": *node.Memory.UsageBytes, "working": *node.Memory.WorkingSetBytes,
				"available": *node.Memory.AvailableBytes, "rss": *node.Memory.RSSBytes, "major": *node.Memory.MajorPageFaults,
				"swap": *node.Swap.SwapUsageBytes, "swap free": *node.Swap.SwapAvailableBytes,
				"pids": uint64(*node.Rlimit.MaxPID), "tasks": uint64(*node.Rlimit.NumOfRunningProcesses), "image": *node.Runtime.ImageFs.UsedBytes,
			}
			want := map[string]uint64{
				"cpu": 9_000_000_000, "usage": used, "working": used - 40960, "available": 1000<<10 - used + 40960, "rss": 2048, "major": 1,
				"swap": 30 << 10, "swap free": 20 << 10, "pids": 5000, "tasks": 345, "image": 77,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if node.Network.Name != "ens3" || *node.Network.RxErrors != 2 || *node.Network.TxBytes != 200 || len(node.Network.Interfaces) != 2 {
				t.Errorf("network %+v", node.Network)
			}
			if *node.Fs.CapacityBytes < *node.Fs.AvailableBytes || *node.Fs.CapacityBytes == 0 || node.Runtime.ContainerFs != node.Runtime.ImageFs {
				t.Errorf("file systems %+v %+v", node.Fs, node.Runtime)
			}
			pods := node.SystemContainers[0]
			if pods.Name != "pods" || *pods.Memory.AvailableBytes != 102400-10240 || *pods.CPU.UsageCoreNanoSeconds != 7_000_000_000 || *pods.Swap.SwapUsageBytes != 512 {
				t.Errorf("pods %+v %+v %+v", pods.CPU, pods.Memory, pods.Swap)
			}
		})
	}
}

// TestThisNode reads the machine that the test runs on, whatever it is.
func TestThisNode(t *testing.T) {
	p := provider(t, &fakeRuntime{pods: []*cri.PodSandboxStats{}})
	p.cfg.Cgroups, p.cfg.Proc, p.cfg.PodsDir = "/sys/fs/cgroup", "/proc", ""
	p.rates.begin()
	node, err := p.node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if *node.CPU.UsageCoreNanoSeconds == 0 || *node.Memory.WorkingSetBytes == 0 || *node.Memory.AvailableBytes == 0 || *node.Rlimit.NumOfRunningProcesses == 0 {
		t.Errorf("%+v %+v %+v", node.CPU, node.Memory, node.Rlimit)
	}
}

// TestIncompleteNode: what can be read is there, whatever cannot.
func TestIncompleteNode(t *testing.T) {
	p := provider(t, &fakeRuntime{pods: []*cri.PodSandboxStats{}})
	p.cfg.Proc, p.cfg.RootDir = t.TempDir(), "/nonexistent"
	s, err := p.Summary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Node.CPU == nil || s.Node.Fs != nil || s.Node.Rlimit != nil || s.Node.Network != nil {
		t.Errorf("%+v", s.Node)
	}
}

func TestOncePerSecondAndRates(t *testing.T) {
	dir := provider(t, &fakeRuntime{}).cfg // made outside the bubble, since it has cleanups
	synctest.Test(t, func(t *testing.T) {
		f := &fakeRuntime{pods: []*cri.PodSandboxStats{podStats()}, mountpoint: dir.RootDir}
		dir.Runtime, dir.Images = f, f
		p := New(dir)
		for range 3 {
			if _, err := p.Summary(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if f.asked != 1 {
			t.Errorf("asked %d times in one second", f.asked)
		}
		time.Sleep(time.Second)
		c := f.pods[0].Linux.Containers[0]
		c.Cpu.Timestamp, c.Cpu.UsageCoreNanoSeconds = 9*second, u(1_900_000_000)
		s, err := p.Summary(t.Context())
		if err != nil || f.asked != 2 {
			t.Fatalf("asked %d times, %v", f.asked, err)
		}
		if rate := s.Pods[0].Containers[0].CPU.UsageNanoCores; rate == nil || *rate != 100_000_000 {
			t.Errorf("0.4 s of CPU in 4 s are %v nanocores", rate)
		}
		time.Sleep(time.Second)
		f.err = errors.New("down")
		if _, err := p.Summary(t.Context()); !errors.Is(err, f.err) {
			t.Errorf("without a runtime: %v", err)
		}
	})
}

func scrape(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	var lines []string
	for line := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "machine_") && !strings.HasPrefix(line, "node_") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

func TestResourceMetrics(t *testing.T) {
	f := &fakeRuntime{pods: []*cri.PodSandboxStats{podStats()}}
	p := provider(t, f)
	want := `container_cpu_usage_seconds_total{container="c",namespace="ns",pod="p"} 1.5 5000
container_memory_working_set_bytes{container="c",namespace="ns",pod="p"} 100 5000
container_start_time_seconds{container="c",namespace="ns",pod="p"} 3.5
container_swap_usage_bytes{container="c",namespace="ns",pod="p"} 3 5000
pod_cpu_usage_seconds_total{namespace="ns",pod="p"} 2 6000
pod_memory_working_set_bytes{namespace="ns",pod="p"} 110 6000
pod_swap_usage_bytes{namespace="ns",pod="p"} 3 5000
resource_scrape_error 0
scrape_error 0
`
	if diff := cmp.Diff(want, scrape(t, p.Resource())); diff != "" {
		t.Error(diff)
	}
	f.err = errors.New("down")
	p.last = nil
	if diff := cmp.Diff("resource_scrape_error 1\nscrape_error 1\n", scrape(t, p.Resource())); diff != "" {
		t.Error(diff)
	}
}

// A claim has one size, however many pods use it, and volumes without a claim are nobody's to watch.
func TestClaimMetrics(t *testing.T) {
	p := provider(t, &fakeRuntime{pods: []*cri.PodSandboxStats{podStats()}})
	p.cfg.Volumes = func(types.UID) []api.VolumeStats {
		claim := api.VolumeStats{PVCRef: &api.PVCReference{Namespace: "ns", Name: "data"}, FsStats: api.FsStats{CapacityBytes: new(uint64(100)), UsedBytes: new(uint64(7))}}
		return append(volumes("uid"), claim, claim)
	}
	want := `kubelet_volume_stats_capacity_bytes{namespace="ns",persistentvolumeclaim="data"} 100
kubelet_volume_stats_used_bytes{namespace="ns",persistentvolumeclaim="data"} 7
`
	if diff := cmp.Diff(want, scrape(t, p.Claims())); diff != "" {
		t.Error(diff)
	}
}

func TestCadvisorMetrics(t *testing.T) {
	f := &fakeRuntime{pods: []*cri.PodSandboxStats{podStats()}}
	want := `container_cpu_usage_seconds_total{container="",cpu="total",id="",image="",name="",namespace="ns",pod="p"} 2 6000
container_cpu_usage_seconds_total{container="c",cpu="total",id="id",image="img",name="id",namespace="ns",pod="p"} 1.5 5000
container_fs_usage_bytes{container="c",device="",id="id",image="img",name="id",namespace="ns",pod="p"} 1000
container_memory_rss{container="c",id="id",image="img",name="id",namespace="ns",pod="p"} 90
container_memory_usage_bytes{container="c",id="id",image="img",name="id",namespace="ns",pod="p"} 120
container_memory_working_set_bytes{container="",id="",image="",name="",namespace="ns",pod="p"} 110 6000
container_memory_working_set_bytes{container="c",id="id",image="img",name="id",namespace="ns",pod="p"} 100 5000
container_network_receive_bytes_total{container="",id="",image="",interface="eth0",name="",namespace="ns",pod="p"} 21
container_network_receive_bytes_total{container="",id="",image="",interface="net1",name="",namespace="ns",pod="p"} 31
container_network_transmit_bytes_total{container="",id="",image="",interface="eth0",name="",namespace="ns",pod="p"} 22
container_start_time_seconds{container="c",id="id",image="img",name="id",namespace="ns",pod="p"} 3
`
	if diff := cmp.Diff(want, scrape(t, provider(t, f).Cadvisor())); diff != "" {
		t.Error(diff)
	}

	// A runtime with metrics of its own.
	f.descriptors = []*cri.MetricDescriptor{{Name: "container_x_total", Help: "X.", LabelKeys: []string{"id"}}}
	f.metrics = []*cri.PodSandboxMetrics{{
		Metrics: []*cri.Metric{
			{Name: "container_x_total", MetricType: cri.MetricType_COUNTER, LabelValues: []string{"s"}, Value: u(1), Timestamp: 7 * second},
			{Name: "container_x_total", LabelValues: []string{"too", "many"}, Value: u(2)},
			{Name: "unknown", Value: u(3)},
		},
		ContainerMetrics: []*cri.ContainerMetrics{{Metrics: []*cri.Metric{
			{Name: "container_x_total", MetricType: cri.MetricType_COUNTER, LabelValues: []string{"c"}, Value: u(4)},
		}}},
	}}
	want = "container_x_total{id=\"c\"} 4\ncontainer_x_total{id=\"s\"} 1 7000\n"
	if diff := cmp.Diff(want, scrape(t, provider(t, f).Cadvisor())); diff != "" {
		t.Error(diff)
	}
}

func FuzzKeys(f *testing.F) {
	f.Add("a 1\nb: 2 kB\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := keys(filepath.Join(files(t, map[string]string{"f": text}), "f"))
		if err != nil {
			t.Fatal(err)
		}
		for key := range all {
			if !strings.Contains(text, key) {
				t.Errorf("%q is not in %q", key, text)
			}
		}
	})
}
