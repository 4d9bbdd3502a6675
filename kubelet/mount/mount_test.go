package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

// private is a directory with a mount of its own, which is not shared with anybody.
func private(t *testing.T) string {
	t.Helper()
	kernel.Require(t, kernel.Root)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := UnmountBelow(dir); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mountsAt are those at a place, what was mounted first first.
func mountsAt(t *testing.T, path string) []*mountinfo.Info {
	t.Helper()
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestShare makes a directory shared, once, and one below it is shared then too.
func TestShare(t *testing.T) {
	dir := filepath.Join(private(t), "kubelet")
	beside := dir + "-other" // whose name begins alike
	if err := os.Mkdir(beside, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", beside, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Share(dir); err != nil {
			t.Fatal(err)
		}
		if m := mountsAt(t, dir); len(m) != 1 || !strings.Contains(m[0].Optional, "shared:") {
			t.Errorf("mounts at %s: %+v", dir, m)
		}
	}
	below := filepath.Join(dir, "below")
	if err := Share(below); err != nil {
		t.Fatal(err)
	}
	if m := mountsAt(t, below); len(m) != 0 {
		t.Errorf("mounted though it was shared: %+v", m)
	}
}

// TestShareOwnMount: a directory that is a mount already is not mounted again.
func TestShareOwnMount(t *testing.T) {
	dir := private(t)
	if err := Share(dir); err != nil {
		t.Fatal(err)
	}
	if m := mountsAt(t, dir); len(m) != 1 || !strings.Contains(m[0].Optional, "shared:") {
		t.Errorf("mounts: %+v", m)
	}
}

// TestLinks: a directory may be named by a link that leads to it.
func TestLinks(t *testing.T) {
	dir := private(t)
	kubelet, link := filepath.Join(dir, "disk", "kubelet"), filepath.Join(dir, "link")
	if err := os.MkdirAll(kubelet, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(kubelet, link); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Share(link); err != nil {
			t.Fatal(err)
		}
	}
	if m := mountsAt(t, kubelet); len(m) != 1 {
		t.Errorf("mounts: %+v", m)
	}
	below := filepath.Join(link, "pods", "volume")
	if err := os.MkdirAll(below, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := UnmountBelow(filepath.Join(link, "pods")); err != nil {
		t.Error(err)
	}
	if is, err := Mounted(below); err != nil || is {
		t.Errorf("mounted: %t, %v", is, err)
	}
}

// TestUnmountBelow leaves what only has a name that begins alike.
func TestUnmountBelow(t *testing.T) {
	dir := private(t)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "ab")
	for _, path := range []string{a, b, a + "/in"} {
		if err := os.MkdirAll(path, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if path == a {
			continue
		}
		if is, err := Mounted(path); err != nil || !is {
			t.Errorf("%s is not mounted: %v", path, err)
		}
	}
	if err := UnmountBelow(a); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]bool{a: false, b: true, filepath.Join(dir, "none"): false} {
		if is, err := Mounted(path); err != nil || is != want {
			t.Errorf("%s mounted: %t, %v", path, is, err)
		}
	}
}
