package spec

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/profiles/seccomp"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSeccompAsItsLibrary: on the running kernel, our evaluation of the default profile gives what its own library
// gives.
func TestSeccompAsItsLibrary(t *testing.T) {
	for _, caps := range [][]string{nil, usualCapabilities, {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF"}, everyCapability()} {
		want, err := seccomp.GetDefaultProfile(&rspec.Spec{Process: &rspec.Process{Capabilities: &rspec.LinuxCapabilities{Bounding: caps}}})
		if err != nil {
			t.Fatal(err)
		}
		b := &builder{spec: &rspec.Spec{Process: &rspec.Process{Capabilities: &rspec.LinuxCapabilities{Bounding: caps}}}}
		b.in.Host.KernelMajor, b.in.Host.KernelMinor = runningKernel(t)
		if diff := cmp.Diff(want, b.evaluateSeccomp(seccomp.DefaultProfile())); diff != "" {
			t.Errorf("with %v (-library +ours):\n%s", caps, diff)
		}
	}
}

func runningKernel(t *testing.T) (major, minor int) {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		t.Fatalf("kernel release %q: %v", release, err)
	}
	return major, minor
}

func TestKernelConditions(t *testing.T) {
	for _, tt := range []struct {
		major, minor int
		want         bool // that a rule for 4.8 holds
	}{{0, 0, false}, {4, 7, false}, {4, 8, true}, {4, 19, true}, {3, 19, false}, {6, 1, true}} {
		c := conditions{host: Host{KernelMajor: tt.major, KernelMinor: tt.minor}}
		f := &seccomp.Filter{MinKernel: &seccomp.KernelVersion{Kernel: 4, Major: 8}}
		if c.all(f) != tt.want || c.any(f) != tt.want {
			t.Errorf("on %d.%d a rule for 4.8: included %v, excluded %v; want %v", tt.major, tt.minor, c.all(f), c.any(f), tt.want)
		}
	}
}

// TestSeccompKeepsProfile: the spec of one container must not change the default of the next.
func TestSeccompKeepsProfile(t *testing.T) {
	in := baseInput()
	in.Container.Linux.SecurityContext.SeccompProfilePath = "runtime/default"
	first, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	want := first.Spec.Linux.Seccomp.Syscalls[0].Names[0]
	first.Spec.Linux.Seccomp.Syscalls[0].Names[0] = "changed"
	second, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if got := second.Spec.Linux.Seccomp.Syscalls[0].Names[0]; got != want {
		t.Errorf("a change to one spec reaches the next: %q, want %q", got, want)
	}
}

func TestSeccompWithoutX32(t *testing.T) {
	for _, without := range []bool{false, true} {
		in := Input{
			Host: Host{Seccomp: true, NoX32: without, Arch: "amd64", KernelMajor: 6}, ID: "a", Rootfs: "/r", CgroupsPath: "/a/b",
			Sandbox: &cri.PodSandboxConfig{},
			Container: &cri.ContainerConfig{Command: []string{"x"}, Linux: &cri.LinuxContainerConfig{
				SecurityContext: &cri.LinuxContainerSecurityContext{
					Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
					NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				},
			}},
		}
		out, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		archs := out.Spec.Linux.Seccomp.Architectures
		if slices.Contains(archs, rspec.ArchX32) == without || !slices.Contains(archs, rspec.ArchX86) {
			t.Errorf("without x32 = %v: %v", without, archs)
		}
	}
}
