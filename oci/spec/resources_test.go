package spec

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestUpdate: an update holds only what it sets, and no device rules among it.
func TestUpdate(t *testing.T) {
	update, notes, err := Resources(baseInput().Host, &cri.LinuxContainerResources{
		CpuQuota: -1, MemoryLimitInBytes: 1 << 29, CpusetMems: "0",
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4}}, Unified: map[string]string{"memory.high": "max"},
	})
	if err != nil || notes != nil {
		t.Fatalf("%v, notes %v", err, notes)
	}
	if got, want := marshal(t, update), `{"memory":{"limit":536870912,"swap":536870912},"cpu":{"quota":-1,"mems":"0"},`+
		`"hugepageLimits":[{"pageSize":"2MB","limit":4}],"unified":{"memory.high":"max"}}`; got != want {
		t.Errorf("update %s\nwant   %s", got, want)
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
