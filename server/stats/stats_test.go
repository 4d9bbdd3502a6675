package stats

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/storage"
)

var at = time.Unix(1000, 0)

func TestContainer(t *testing.T) {
	var s sampler
	attributes := &cri.ContainerAttributes{Id: "c"}
	used := &cgroup.Stats{
		Time:   at,
		CPU:    &cgroup.CPU{UsageNanos: 7, PSI: &cgroup.PSI{Some: cgroup.PSILine{TotalMicros: 3, Avg10: 1.5}}},
		Memory: &cgroup.Memory{UsageBytes: 10, WorkingSetBytes: 8, AvailableBytes: 4, RSSBytes: 6, PageFaults: 5, MajorPageFaults: 1, LimitBytes: 12},
		Swap:   &cgroup.Swap{UsageBytes: 2, AvailableBytes: 3},
	}
	got := s.container(attributes, used, &disk{"/layers", storage.Usage{Bytes: 9, Inodes: 4}, at})
	want := &cri.ContainerStats{
		Attributes: attributes,
		Cpu: &cri.CpuUsage{
			Timestamp: at.UnixNano(), UsageCoreNanoSeconds: number(7),
			Psi: &cri.PsiStats{Some: &cri.PsiData{Total: 3000, Avg10: 1.5}, Full: &cri.PsiData{}},
		},
		Memory: &cri.MemoryUsage{
			Timestamp: at.UnixNano(), UsageBytes: number(10), WorkingSetBytes: number(8), AvailableBytes: number(4),
			RssBytes: number(6), PageFaults: number(5), MajorPageFaults: number(1),
		},
		Swap: &cri.SwapUsage{Timestamp: at.UnixNano(), SwapUsageBytes: number(2), SwapAvailableBytes: number(3)},
		WritableLayer: &cri.FilesystemUsage{
			Timestamp: at.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: "/layers"}, UsedBytes: number(9), InodesUsed: number(4),
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	used.Memory.AvailableBytes, used.Memory.LimitBytes, used.Swap.AvailableBytes = 0, 0, 0
	if got := s.container(attributes, used, nil); got.Memory.AvailableBytes != nil || got.Swap.SwapAvailableBytes != nil {
		t.Errorf("without limits: %v", got)
	}
	if got := s.container(attributes, nil, nil); got.Cpu != nil || got.Memory != nil || got.WritableLayer != nil {
		t.Errorf("of an ended container: %v", got)
	}
}

func TestNanoCores(t *testing.T) {
	var s sampler
	for i, tt := range []struct {
		after time.Duration
		usage uint64
		rate  uint64
		known bool
	}{
		{0, 1000, 0, false},
		{500 * time.Millisecond, 2000, 0, false}, // within the window, and no rate yet
		{2 * time.Second, 5000, 2000, true},
		{2500 * time.Millisecond, 9000, 2000, true}, // the last one
		{4 * time.Second, 5000, 0, true},
		{6 * time.Second, 10, 0, false}, // it was made anew
		{8 * time.Second, 30, 10, true},
	} {
		rate, known := s.nanoCores("c", at.Add(tt.after), tt.usage)
		if rate != tt.rate || known != tt.known {
			t.Errorf("%d: %d %v; want %d %v", i, rate, known, tt.rate, tt.known)
		}
	}
	s.forget("c")
	if _, known := s.nanoCores("c", at.Add(time.Hour), 40); known {
		t.Error("it was not forgotten")
	}
}

const devTable = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1234      10    2    0    0     0          0         0     5678      20    3    0    0     0       0          0
  net1:    5       1    0    0    0     0          0         0        6       1    0    0    0     0       0          0
`

func TestParseNetwork(t *testing.T) {
	got, err := parseNetwork([]byte(devTable), at)
	want := &cri.NetworkUsage{
		Timestamp:        at.UnixNano(),
		DefaultInterface: &cri.NetworkInterfaceUsage{Name: "eth0", RxBytes: number(1234), RxErrors: number(2), TxBytes: number(5678), TxErrors: number(3)},
		Interfaces: []*cri.NetworkInterfaceUsage{
			{Name: "net1", RxBytes: number(5), RxErrors: number(0), TxBytes: number(6), TxErrors: number(0)},
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"eth0: 1 2 3", "eth0: a b c d e f g h i j k l m n o p"} {
		if _, err := parseNetwork([]byte(bad), at); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
