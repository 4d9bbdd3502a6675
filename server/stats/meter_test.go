package stats

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/storage"
	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

type fakeCgroups map[string]*cgroup.Stats

func (f fakeCgroups) Read(dir string) (*cgroup.Stats, error) {
	if s := f[dir]; s != nil {
		return s, nil
	}
	return nil, fs.ErrNotExist
}

type fakeStorage map[string]storage.Usage

func (f fakeStorage) RootfsUsage(_ context.Context, id string) (storage.Usage, error) {
	if u, ok := f[id]; ok {
		return u, nil
	}
	return storage.Usage{}, storage.ErrNotFound
}

// What is gone is left out, and the rest is there.
func TestMeter(t *testing.T) {
	used := &cgroup.Stats{Time: at, CPU: &cgroup.CPU{UsageNanos: 1}, Memory: &cgroup.Memory{UsageBytes: 2}, Processes: 4}
	m := New(fakeCgroups{"/p": used, "/p/c": used}, fakeStorage{"c": {Bytes: 4096, Inodes: 3}, "ended": {Bytes: 1}}, "/layers")
	c := func(id, dir string) Container {
		return Container{Attributes: &cri.ContainerAttributes{Id: id}, CgroupDir: dir}
	}
	got := m.Pod(t.Context(), Pod{
		Attributes: &cri.PodSandboxAttributes{Id: "p"}, CgroupDir: "/p",
		Containers: []Container{c("c", "/p/c"), c("ended", ""), c("gone", "/p/gone")},
	}).GetLinux()
	if got.GetCpu() == nil || got.GetMemory() == nil || got.GetProcess().GetProcessCount().GetValue() != 4 || got.Network != nil {
		t.Errorf("pod on the host's network: %v", got)
	}
	for i, want := range []struct{ cgroup, layer bool }{{true, true}, {false, true}, {false, false}} {
		s := got.Containers[i]
		if (s.Cpu != nil) != want.cgroup || (s.Memory != nil) != want.cgroup || (s.WritableLayer != nil) != want.layer {
			t.Errorf("%s: %v", s.Attributes.Id, s)
		}
	}
	if l := got.Containers[0].WritableLayer; l.UsedBytes.Value != 4096 || l.InodesUsed.Value != 3 || l.FsId.Mountpoint != "/layers" || l.Timestamp <= 0 {
		t.Errorf("%v", l)
	}
}

func TestNetworkOfNamespace(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := filepath.Join(t.TempDir(), "ns")
	if err := ns.Create(t.Context(), ns.Options{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ns.Delete(context.Background(), dir); err != nil {
			t.Error(err)
		}
	}()
	got, err := network(filepath.Join(dir, "net"))
	if err != nil || got.Timestamp <= 0 || got.DefaultInterface != nil || len(got.Interfaces) > 0 {
		t.Errorf("only loopback: %v, %v", got, err)
	}
	host, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := network("/proc/self/ns/net"); err != nil || len(host) > 1 && got.GetDefaultInterface() == nil {
		t.Errorf("of the host, which has %d interfaces: %v, %v", len(host), got, err)
	}
	if got, err := network(filepath.Join(dir, "gone")); err == nil {
		t.Errorf("of nothing: %v", got)
	}
}

// The kernel's numbers reach the answer.
func TestMeterOnKernel(t *testing.T) {
	kernel.Require(t, kernel.Root)
	host, err := cgroup.Detect(false)
	if err != nil {
		t.Fatal(err)
	}
	made, err := host.EnsurePod("/orlop-test-stats")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := host.Remove(made); err != nil {
			t.Error(err)
		}
	}()
	dir, err := host.Dir("/orlop-test-stats")
	if err != nil {
		t.Fatal(err)
	}
	got := New(host, fakeStorage{}, "/layers").Container(t.Context(), Container{
		Attributes: &cri.ContainerAttributes{Id: "c"}, CgroupDir: dir,
	})
	if host.Controllers["memory"] && got.GetMemory().GetTimestamp() <= 0 {
		t.Errorf("%v", got)
	}
	if _, err := host.Read(dir + "/gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
}

// FuzzParseNetwork finds no table in which loopback or nothing at all is an interface.
func FuzzParseNetwork(f *testing.F) {
	f.Add([]byte(devTable))
	f.Add([]byte("eth0:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"))
	f.Fuzz(func(t *testing.T, table []byte) {
		got, err := parseNetwork(table, at)
		if err != nil {
			return
		}
		for _, i := range append(got.Interfaces, got.DefaultInterface) {
			if i != nil && i.Name == "lo" || got.Timestamp != at.UnixNano() {
				t.Errorf("%q: %v", table, i)
			}
		}
		if got.DefaultInterface == nil && len(got.Interfaces) > 0 {
			t.Errorf("%q: no default", table)
		}
	})
}

func BenchmarkContainer(b *testing.B) {
	host, err := cgroup.Detect(false)
	if err != nil {
		b.Fatal(err)
	}
	m := New(host, fakeStorage{"c": {}}, "/layers")
	for b.Loop() {
		m.Container(b.Context(), Container{Attributes: &cri.ContainerAttributes{Id: "c"}, CgroupDir: "/"})
	}
}

func BenchmarkNetwork(b *testing.B) {
	for b.Loop() {
		if _, err := network("/proc/self/ns/net"); err != nil {
			b.Fatal(err)
		}
	}
}
