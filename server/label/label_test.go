package label

import (
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

func TestPodsAreKeptApart(t *testing.T) {
	kernel.Require(t, kernel.Root, kernel.SELinux)
	a, err := Pod(nil)
	if err != nil || !strings.Contains(a.Process, ":container_t:s0:c") || !strings.Contains(a.Mount, ":container_file_t:s0:c") {
		t.Fatalf("%+v, %v", a, err)
	}
	b, err := Pod(nil)
	if err != nil || a.Process == b.Process {
		t.Errorf("two pods have %q, %v", b.Process, err)
	}
	Release(a.Process)
	Release(b.Process)
}

func TestContainer(t *testing.T) {
	kernel.Require(t, kernel.Root, kernel.SELinux)
	pod, err := Pod(&cri.SELinuxOption{Level: "s0:c7,c8"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Container(pod, nil, false); got != pod || err != nil {
		t.Errorf("%+v, %v; want %+v", got, err, pod)
	}
	got, err := Container(pod, &cri.SELinuxOption{Type: "spc_t"}, false)
	if err != nil || !strings.HasSuffix(got.Process, ":spc_t:s0:c7,c8") {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Container(pod, nil, true); got.Process != "" || err != nil {
		t.Errorf("privileged: %+v, %v", got, err)
	}
	if _, err := Pod(&cri.SELinuxOption{Type: "no_such_type_t"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("unknown type: %v", err)
	}
}

func TestRelabel(t *testing.T) {
	kernel.Require(t, kernel.Root, kernel.SELinux)
	dir := filepath.Join(t.TempDir(), "volume")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Relabel(dir, "system_u:object_r:container_file_t:s0:c1,c2", false); err != nil {
		t.Error(err)
	}
	if err := Relabel("/usr", "system_u:object_r:container_file_t:s0:c1,c2", false); !errors.Is(err, ErrInvalid) {
		t.Errorf("/usr: %v", err)
	}
}

func TestRelabelOfAFileSystemWithoutLabels(t *testing.T) {
	kernel.Require(t, kernel.Root, kernel.SELinux)
	dir := t.TempDir()
	if err := unix.Mount("labelled", dir, "tmpfs", 0, `context="system_u:object_r:container_file_t:s0"`); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := Relabel(dir, "system_u:object_r:container_file_t:s0:c1,c2", false); err != nil {
		t.Error(err)
	}
}

func TestShared(t *testing.T) {
	for in, want := range map[string]string{
		"": "",
		"system_u:object_r:container_file_t:s0:c1,c2": "system_u:object_r:container_file_t:s0",
		"system_u:object_r:container_file_t:s0":       "system_u:object_r:container_file_t:s0",
	} {
		if got, err := Shared(in); got != want || err != nil {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	if got, err := Shared("nonsense"); !errors.Is(err, ErrInvalid) {
		t.Errorf("nonsense: %q, %v; want ErrInvalid", got, err)
	}
}

func TestWithoutSELinux(t *testing.T) {
	if Enabled() {
		kernel.Skip(t, "this machine has SELinux")
	}
	pair, err := Pod(&cri.SELinuxOption{Type: "container_t"})
	if pair != (Pair{}) || err != nil {
		t.Errorf("%+v, %v", pair, err)
	}
}
