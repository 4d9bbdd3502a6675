package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

func TestHostPaths(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "real"), link); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := Sources{}.Mounts(t.Context(), []*cri.Mount{
		{HostPath: link, ContainerPath: "/a"},
		{HostPath: filepath.Join(dir, "made/here"), ContainerPath: "/b"},
	})
	if err != nil || got[0].Source != filepath.Join(dir, "real") || got[1].Source != filepath.Join(dir, "made/here") {
		t.Errorf("%+v, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "made/here")); err != nil || !info.IsDir() {
		t.Errorf("not made: %v", err)
	}
	for _, bad := range []string{"", "relative", "/dev/null/below"} {
		if _, err := (Sources{}).Mounts(t.Context(), []*cri.Mount{{HostPath: bad, ContainerPath: "/a"}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// What the node has no place for is not the request's fault. Nobody can make a directory in sysfs.
func TestHostPathThatCanNotBeMade(t *testing.T) {
	for path, mistake := range map[string]bool{"/sys/none": false, "/dev/null/none": true, "/tmp/" + strings.Repeat("x", 300): true} {
		_, err := hostPath(path)
		if err == nil || errors.Is(err, ErrInvalid) != mistake {
			t.Errorf("%.40s: %v; want the request blamed: %v", path, err, mistake)
		}
	}
}

func TestImageSubPath(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "data/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"out": "/etc", "up": "../../../..", "in": "/data/deep"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	sources := Sources{Image: func(context.Context, int, *cri.Mount) (string, error) { return root, nil }}
	for _, tt := range []struct {
		sub, want string
		bad       bool
	}{
		{"", root, false},
		{"data/deep", root + "/data/deep", false},
		{"in", root + "/data/deep", false}, // the image's own root is where its links begin
		{"up", root, false},
		{"out", "", true},
		{"../x", "", true},
		{"/data", "", true},
		{"missing", "", true},
	} {
		got, err := sources.Mounts(t.Context(), []*cri.Mount{{
			ContainerPath: "/a", Image: &cri.ImageSpec{Image: "img"}, ImageSubPath: tt.sub,
		}})
		if tt.bad {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "ImageVolumeMountFailed") {
				t.Errorf("%q: %+v, %v", tt.sub, got, err)
			}
			continue
		}
		if err != nil || got[0].Source != tt.want {
			t.Errorf("%q: %+v, %v; want %q", tt.sub, got, err, tt.want)
		}
	}
}

func TestPropagation(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	both := []cri.MountPropagation{cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}
	for _, tt := range []struct {
		flag uintptr
		want bool
	}{{unix.MS_PRIVATE, false}, {unix.MS_SHARED, true}} {
		if err := unix.Mount("", dir, "", tt.flag, ""); err != nil {
			t.Fatal(err)
		}
		for _, p := range both {
			_, err := Sources{}.Mounts(t.Context(), []*cri.Mount{{HostPath: dir, ContainerPath: "/a", Propagation: p}})
			if (err == nil) != tt.want {
				t.Errorf("flag %#x, %v: %v", tt.flag, p, err)
			}
		}
	}
}

func TestDevices(t *testing.T) {
	got, err := Devices([]*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nothing", Permissions: "rw"}})
	if err != nil || len(got) != 1 || got[0].Node.Path != "/dev/nothing" || got[0].Node.Minor != 3 || got[0].Permissions != "rw" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Devices([]*cri.Device{{HostPath: "/etc/passwd", ContainerPath: "/x"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

// FuzzImageSubPath finds no path that leads out of the image, whatever links are in it.
func FuzzImageSubPath(f *testing.F) {
	f.Add("a/b", "/etc")
	f.Add("link/../..", "../../../..")
	f.Fuzz(func(t *testing.T, sub, link string) {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, "a/b"), 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Symlink(link, filepath.Join(root, "link")) // not every text is a link
		path, err := below(root, sub)
		if err != nil {
			return
		}
		// Nothing in what was found is a link any more.
		if real, err := filepath.EvalSymlinks(path); err != nil || real != path || path != root && !strings.HasPrefix(path, root+"/") {
			t.Errorf("%q with a link to %q: %q, %q, %v", sub, link, path, real, err)
		}
	})
}
