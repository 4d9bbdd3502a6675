package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

func TestDetect(t *testing.T) {
	h, err := Detect(cgroup.Host{Controllers: map[string]bool{"memory": true}})
	if err != nil {
		t.Fatal(err)
	}
	if h.KernelMajor < 4 {
		t.Errorf("kernel %d.%d", h.KernelMajor, h.KernelMinor)
	}
	if slices.Contains(h.Capabilities, "CAP_SYS_RESOURCE") == h.OOMScoreFloor {
		t.Errorf("capabilities %v, floor %v", h.Capabilities, h.OOMScoreFloor)
	}
	if os.Geteuid() == 0 && !slices.Contains(h.Capabilities, "CAP_CHOWN") {
		t.Errorf("capabilities %v", h.Capabilities)
	}
	if !h.Controllers["memory"] {
		t.Errorf("controllers %v", h.Controllers)
	}
}

func TestDevicesAt(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := t.TempDir()
	for name, dev := range map[string]uint64{"null": unix.Mkdev(1, 3), "deep/zero": unix.Mkdev(1, 5)} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(path, unix.S_IFCHR|0o640, int(dev)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	got, err := DevicesAt(link)
	names := make([]string, 0, 2)
	for _, d := range got {
		names = append(names, d.Path)
	}
	if want := []string{link + "/deep/zero", link + "/null"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%v, %v; want %v", names, err, want)
	}
	if i := slices.IndexFunc(got, func(d rspec.LinuxDevice) bool { return d.Minor == 3 }); i < 0 || got[i].Type != "c" || *got[i].FileMode != 0o640 {
		t.Errorf("%+v", got)
	}
	if _, err := DevicesAt(filepath.Join(dir, "file")); !errors.Is(err, ErrNotDevice) {
		t.Errorf("a file: %v", err)
	}
	if _, err := DevicesAt(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestDevices(t *testing.T) {
	got, err := Devices()
	if err != nil || !slices.ContainsFunc(got, func(d rspec.LinuxDevice) bool { return d.Path == "/dev/null" }) {
		t.Errorf("%d devices, %v", len(got), err)
	}
}
