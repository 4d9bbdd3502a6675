package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

// volume is a directory of the node with a file in it.
func volume(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the node\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tmpfs mounts one for the time of the test, which containers may read and write.
func tmpfs(t testing.TB, dir string) {
	t.Helper()
	options := ""
	if kernel.Has(kernel.SELinux) {
		options = "context=system_u:object_r:container_file_t:s0"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func TestMounts(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	dir := volume(t)
	ctr := sleeper(t, pod,
		criclient.Mount(&cri.Mount{HostPath: dir, ContainerPath: "/rw", SelinuxRelabel: true}),
		criclient.Mount(&cri.Mount{HostPath: dir, ContainerPath: "/ro/deep", Readonly: true}),
		criclient.Mount(&cri.Mount{HostPath: filepath.Join(dir, "file"), ContainerPath: "/etc/one-file"}))
	if got := ctr.Exec(t, "cat", "/rw/file", "/ro/deep/file", "/etc/one-file"); got != strings.Repeat("from the node\n", 3) {
		t.Errorf("the mounted files read %q", got)
	}
	ctr.Sh(t, "echo back > /rw/new")
	if raw, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(raw) != "back\n" {
		t.Errorf("what the container wrote: %q, %v", raw, err)
	}
	r, err := ctr.TryExec(t.Context(), 0, "touch", "/ro/deep/x")
	if err != nil || r.ExitCode == 0 {
		t.Errorf("write to a read-only mount: %v, %v", r, err)
	}
	if st := ctr.Status(t); len(st.Mounts) != 3 || st.Mounts[1].ContainerPath != "/ro/deep" || !st.Mounts[1].Readonly {
		t.Errorf("mounts in the status: %v", st.Mounts)
	}
}

// A source that is a link leads where the link leads, and one that is missing is made, as the kubelet expects.
func TestMountSources(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	dir := volume(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "not/there")
	ctr := sleeper(t, pod, criclient.Mount(&cri.Mount{HostPath: link, ContainerPath: "/l", SelinuxRelabel: true}),
		criclient.Mount(&cri.Mount{HostPath: missing, ContainerPath: "/m", SelinuxRelabel: true}))
	if got := ctr.Exec(t, "cat", "/l/file"); got != "from the node\n" {
		t.Errorf("through the link: %q", got)
	}
	ctr.Exec(t, "touch", "/m/x")
	if _, err := os.Stat(filepath.Join(missing, "x")); err != nil {
		t.Error(err)
	}
}

// The image cannot lead a mount out of the container by a link.
func TestMountTargetIsALink(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod, criclient.Mount(&cri.Mount{HostPath: volume(t), ContainerPath: "/proc/../proc/self/../../data/sub", SelinuxRelabel: true}))
	if got := ctr.Exec(t, "cat", "/data/sub/file"); got != "from the node\n" {
		t.Errorf("mount at a path with dots: %q", got)
	}
}

func TestMountPropagation(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	dir := t.TempDir()
	tmpfs(t, dir)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	mount := func(p cri.MountPropagation) criclient.ContainerMod {
		return criclient.Mount(&cri.Mount{HostPath: dir, ContainerPath: "/m", Propagation: p})
	}
	privileged := criclient.Security(func(s *securityContext) { s.Privileged = true })
	private := sleeper(t, pod, mount(cri.MountPropagation_PROPAGATION_PRIVATE))
	slave := sleeper(t, pod, mount(cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER))
	tmpfs(t, filepath.Join(dir, "late"))
	if err := os.WriteFile(filepath.Join(dir, "late/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	sees := func(ctr *criclient.Container) bool {
		r, err := ctr.TryExec(t.Context(), 0, "test", "-e", "/m/late/file")
		return err == nil && r.ExitCode == 0
	}
	if sees(private) || !sees(slave) {
		t.Errorf("a later mount of the node is seen in a private mount: %v, in one from host to container: %v", sees(private), sees(slave))
	}
	hostPod := node.Pod(t, criclient.HostNetwork, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true }))
	both := sleeper(t, hostPod, privileged, mount(cri.MountPropagation_PROPAGATION_BIDIRECTIONAL))
	both.Sh(t, "mkdir /m/theirs && mount -t tmpfs tmpfs /m/theirs && touch /m/theirs/file")
	if _, err := os.Stat(filepath.Join(dir, "theirs/file")); err != nil {
		t.Errorf("a container's mount in a bidirectional mount is not seen: %v", err)
	}
}

func TestRecursiveReadOnly(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t, criclient.HostNetwork)
	dir := t.TempDir()
	tmpfs(t, dir)
	tmpfs(t, filepath.Join(dir, "sub"))
	for recursive, want := range map[bool]int32{true: 1, false: 0} {
		ctr := sleeper(t, pod, criclient.Mount(&cri.Mount{HostPath: dir, ContainerPath: "/m", Readonly: true, RecursiveReadOnly: recursive}))
		r, err := ctr.TryExec(t.Context(), 0, "touch", "/m/sub/x")
		if err != nil || r.ExitCode != want {
			t.Errorf("write below a read-only mount, recursive %v: %v, %v; want exit code %d", recursive, r, err, want)
		}
	}
	_, err := pod.TryCreate(t.Context(), pod.ContainerConfig(probe,
		criclient.Mount(&cri.Mount{HostPath: dir, ContainerPath: "/m", RecursiveReadOnly: true})))
	if err == nil {
		t.Error("recursive_read_only without readonly was accepted; the API forbids it")
	}
}

func TestImageVolume(t *testing.T) {
	t.Parallel()
	ours(t)
	img := variant(t, node, func(c *imgspec.ImageConfig) { c.Labels = map[string]string{"kind": "volume"} })
	pod := node.Pod(t, criclient.HostNetwork)
	mount := func(sub string) criclient.ContainerMod {
		return criclient.Mount(&cri.Mount{ContainerPath: "/vol", Readonly: true, Image: &cri.ImageSpec{Image: img}, ImageSubPath: sub})
	}
	whole := sleeper(t, pod, mount(""))
	if got := whole.Exec(t, "cat", "/vol/data/in-image"); got != "from the image\n" {
		t.Errorf("an image as a volume: %q", got)
	}
	if r, err := whole.TryExec(t.Context(), 0, "touch", "/vol/x"); err != nil || r.ExitCode == 0 {
		t.Errorf("write to an image volume: %v, %v", r, err)
	}
	if got := sleeper(t, pod, mount("data/sub")).Exec(t, "cat", "/vol/file"); got != "in a subdirectory\n" {
		t.Errorf("a sub path of an image: %q", got)
	}
	for _, sub := range []string{"../../etc", "no/such"} {
		if _, err := pod.TryCreate(t.Context(), pod.ContainerConfig(probe, mount(sub))); err == nil {
			t.Errorf("sub path %q was accepted", sub)
		}
	}
}
