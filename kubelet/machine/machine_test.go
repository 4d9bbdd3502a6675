package machine

import (
	"net"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestMemInfo(t *testing.T) {
	got := MemInfo("MemTotal:       16315184 kB\nSwapTotal:  0 kB\nHugePages_Total:       3\nbad\n")
	if got["MemTotal"] != 16315184*1024 || got["HugePages_Total"] != 3 || got["SwapTotal"] != 0 {
		t.Errorf("%v", got)
	}
}

func TestRead(t *testing.T) {
	f, err := Read(t.TempDir())
	if err != nil || f.CPUs < 1 || f.Memory < 1<<20 || f.Disk < 1<<20 || f.Info.BootID == "" || f.Info.KernelVersion == "" || f.Info.OSImage == "" {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestAllocatable(t *testing.T) {
	q := resource.MustParse
	f := Facts{CPUs: 4, Memory: 8 << 30, Disk: 100 << 30, HugePages: map[int64]int64{2 << 20: 512}}
	capacity := f.Capacity(110, 10)
	if capacity.Pods().Value() != 40 {
		t.Errorf("10 pods for each of 4 CPUs are %s", capacity.Pods())
	}
	if got := capacity["hugepages-2Mi"]; got.Value() != 1<<30 {
		t.Errorf("huge pages: %s", got.String())
	}
	got := Allocatable(capacity, v1.ResourceList{v1.ResourceCPU: q("500m"), v1.ResourceMemory: q("1Gi")}, v1.ResourceList{v1.ResourceMemory: q("100Mi")})
	if got.Cpu().MilliValue() != 3500 || got.Memory().Value() != 8<<30-1<<30-100<<20-1<<30 {
		t.Errorf("CPU %s, memory %s", got.Cpu(), got.Memory())
	}
	if got := Allocatable(capacity, v1.ResourceList{v1.ResourceCPU: q("5")}); got.Cpu().Sign() != 0 {
		t.Errorf("more reserved than there is: %s", got.Cpu())
	}
}

func TestAddresses(t *testing.T) {
	own := net.IPv4(192, 0, 2, 1)
	if got, err := Addresses([]net.IP{own}); err != nil || !got[0].Equal(own) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := Addresses(nil); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}
