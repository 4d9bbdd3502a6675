package spec

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestUpdate: an update holds only what it sets, no device rules among it, and what it does not set stays.
func TestUpdate(t *testing.T) {
	h := baseInput().Host
	translate := func(r *cri.LinuxContainerResources) *rspec.LinuxResources {
		t.Helper()
		out, notes, err := Resources(h, r)
		if err != nil || notes != nil {
			t.Fatalf("%v, notes %v", err, notes)
		}
		return out
	}
	old := translate(&cri.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 1 << 28, CpusetCpus: "0-1",
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 2}, {PageSize: "1GB", Limit: 1}},
		Unified:        map[string]string{"memory.high": "7", "io.weight": "default 5"},
	})
	old.Devices, old.Pids = []rspec.LinuxDeviceCgroup{{Access: "rwm"}}, &rspec.LinuxPids{Limit: new(int64(9))}
	before := marshal(t, old)

	update := translate(&cri.LinuxContainerResources{
		CpuQuota: -1, MemoryLimitInBytes: 1 << 29, CpusetMems: "0",
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4}}, Unified: map[string]string{"memory.high": "max"},
	})
	if got, want := marshal(t, update), `{"memory":{"limit":536870912,"swap":536870912},"cpu":{"quota":-1,"mems":"0"},`+
		`"hugepageLimits":[{"pageSize":"2MB","limit":4}],"unified":{"memory.high":"max"}}`; got != want {
		t.Errorf("update %s\nwant   %s", got, want)
	}
	merged := marshal(t, MergeResources(old, update))
	if want := `{"devices":[{"allow":false,"access":"rwm"}],"memory":{"limit":536870912,"swap":536870912},` +
		`"cpu":{"shares":512,"quota":-1,"period":100000,"cpus":"0-1","mems":"0"},"pids":{"limit":9},` +
		`"hugepageLimits":[{"pageSize":"1GB","limit":1},{"pageSize":"2MB","limit":4}],` +
		`"unified":{"io.weight":"default 5","memory.high":"max"}}`; merged != want {
		t.Errorf("merged %s\nwant   %s", merged, want)
	}
	if diff := cmp.Diff(before, marshal(t, old)); diff != "" {
		t.Errorf("the old resources were changed: %s", diff)
	}
}

// TestMergeWithNothing: either side may be empty.
func TestMergeWithNothing(t *testing.T) {
	some := &rspec.LinuxResources{
		CPU:    &rspec.LinuxCPU{Shares: new(uint64(2)), Cpus: "1"},
		Memory: &rspec.LinuxMemory{Limit: new(int64(3))},
	}
	none := &rspec.LinuxResources{}
	if diff := cmp.Diff(some, MergeResources(none, some)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(some, MergeResources(some, none)); diff != "" {
		t.Error(diff)
	}
}

func TestNoResources(t *testing.T) {
	got, notes, err := Resources(Host{}, nil)
	if err != nil || notes != nil {
		t.Fatalf("%v, notes %v", err, notes)
	}
	if diff := cmp.Diff(&rspec.LinuxResources{}, got); diff != "" {
		t.Error(diff)
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
