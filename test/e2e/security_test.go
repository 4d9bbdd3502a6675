package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/selinux/go-selinux"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

type securityContext = cri.LinuxContainerSecurityContext

// Numbers of capabilities(7).
const (
	capChown    = 0
	capNetBind  = 10
	capNetAdmin = 12
	capNetRaw   = 13
	capSysAdmin = 21
	capSysTime  = 25
)

func has(set uint64, number int) bool { return set&(1<<number) != 0 }

func TestCapabilities(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	for name, tt := range map[string]struct {
		caps *cri.Capability
		want map[int]bool
	}{
		"default":  {nil, map[int]bool{capChown: true, capNetBind: true, capSysAdmin: false, capNetAdmin: false}},
		"add":      {&cri.Capability{AddCapabilities: []string{"SYS_TIME", "NET_ADMIN"}}, map[int]bool{capSysTime: true, capNetAdmin: true, capChown: true}},
		"drop":     {&cri.Capability{DropCapabilities: []string{"CHOWN"}}, map[int]bool{capChown: false, capNetBind: true}},
		"drop all": {&cri.Capability{DropCapabilities: []string{"ALL"}}, map[int]bool{capChown: false, capNetBind: false}},
		"drop all, add one": {&cri.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}},
			map[int]bool{capChown: false, capNetBind: true}},
		"add all, drop one": {&cri.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"SYS_TIME"}},
			map[int]bool{capSysTime: false, capSysAdmin: true, capNetRaw: true}},
	} {
		f := factsOf(t, pod, criclient.Security(func(s *securityContext) { s.Capabilities = tt.caps }))
		for number, want := range tt.want {
			for _, set := range []string{"Eff", "Prm", "Bnd"} {
				if has(f.Caps[set], number) != want {
					t.Errorf("%s: capability %d in %s: %v; want %v", name, number, set, !want, want)
				}
			}
		}
		if f.Caps["Amb"] != 0 || f.Caps["Inh"] != 0 {
			t.Errorf("%s: ambient %x, inheritable %x; want none", name, f.Caps["Amb"], f.Caps["Inh"])
		}
	}
}

// Ambient capabilities are what gives a user other than root any.
func TestAmbientCapabilities(t *testing.T) {
	t.Parallel()
	ours(t)
	pod := node.Pod(t, criclient.HostNetwork)
	f := factsOf(t, pod, criclient.Security(func(s *securityContext) {
		s.RunAsUser = &cri.Int64Value{Value: 1000}
		s.Capabilities = &cri.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	}))
	if f.UID != 1000 || !has(f.Caps["Amb"], capNetBind) || !has(f.Caps["Eff"], capNetBind) {
		t.Errorf("user %d, ambient %x, effective %x; want NET_BIND_SERVICE in both", f.UID, f.Caps["Amb"], f.Caps["Eff"])
	}
}

func TestPrivileged(t *testing.T) {
	t.Parallel()
	privileged := func(s *securityContext) { s.Privileged = true }
	pod := node.Pod(t, podSecurity(func(s *cri.LinuxSandboxSecurityContext) { s.Privileged = true }))
	f := factsOf(t, pod, criclient.Security(privileged))
	if !has(f.Caps["Eff"], capSysAdmin) || f.Seccomp != 0 || strings.Contains(f.Mounts, " /proc/sys ") {
		t.Errorf("a privileged container has capabilities %x, seccomp %d, and masked paths: %v",
			f.Caps["Eff"], f.Seccomp, strings.Contains(f.Mounts, " /proc/sys "))
	}
	if got := try(t, pod, "mount", criclient.Security(privileged)); got != "ok" {
		t.Errorf("mount: %s; want ok", got)
	}
	if _, err := os.Stat("/dev/kmsg"); err == nil {
		if _, err := pod.Container(t, probe, criclient.Security(privileged)).TryExec(t.Context(), 0, "test", "-e", "/dev/kmsg"); err != nil {
			t.Errorf("the node's devices are missing: %v", err)
		}
	}
}

func TestReadOnlyRoot(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	if got := try(t, pod, "mkdir", criclient.Security(func(s *securityContext) { s.ReadonlyRootfs = true })); got != "EROFS" {
		t.Errorf("mkdir with a read-only root: %s; want EROFS", got)
	}
	if got := try(t, pod, "mkdir"); got != "ok" {
		t.Errorf("mkdir with a writable root: %s", got)
	}
}

func TestMaskedAndReadOnlyPaths(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod, criclient.Security(func(s *securityContext) {
		s.MaskedPaths, s.ReadonlyPaths = []string{"/data/in-image", "/data/sub", "/no/such"}, []string{"/tmp"}
	}))
	r, err := ctr.TryExec(t.Context(), 0, "sh", "-c", "cat /data/in-image; ls /data/sub; touch /tmp/x")
	if err != nil || len(r.Stdout) != 0 || r.ExitCode == 0 || !strings.Contains(string(r.Stderr), "Read-only") {
		t.Errorf("masked file and directory, and a read-only path: %v, %v", r, err)
	}
	// What is in the request is all, so these two are not masked; by default they are.
	if f := factsOf(t, pod, criclient.Security(func(s *securityContext) {
		s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/interrupts", "/no/such"}, []string{"/proc/sys"}
	})); !strings.Contains(f.Mounts, " /proc/interrupts ") || !strings.Contains(f.Mounts, " /proc/sys ") {
		t.Errorf("masked /proc/interrupts and read-only /proc/sys are not among the mounts:\n%s", f.Mounts)
	}
}

func TestNoNewPrivileges(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	for _, want := range []bool{true, false} {
		if f := factsOf(t, pod, criclient.Security(func(s *securityContext) { s.NoNewPrivs = want })); f.NoNewPrivs != want {
			t.Errorf("no_new_privs %v; want %v", f.NoNewPrivs, want)
		}
	}
}

func TestUsersAndGroups(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	number := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	merge, strict := cri.SupplementalGroupsPolicy_Merge, cri.SupplementalGroupsPolicy_Strict
	for name, tt := range map[string]struct {
		change   func(*securityContext)
		uid, gid int
		groups   []int // beside gid, which may be among them
		newer    bool  // other runtimes that are installed with us do not know the field
	}{
		"image's, root": {func(*securityContext) {}, 0, 0, nil, false},
		"user":          {func(s *securityContext) { s.RunAsUser = number(1000) }, 1000, 1000, []int{2000, 2001}, false},
		"user unknown":  {func(s *securityContext) { s.RunAsUser = number(7777) }, 7777, 0, nil, false},
		"name":          {func(s *securityContext) { s.RunAsUsername = "sailor" }, 1000, 1000, []int{2000, 2001}, false},
		"group":         {func(s *securityContext) { s.RunAsUser, s.RunAsGroup = number(1000), number(33) }, 1000, 33, []int{2000, 2001}, false},
		"added groups":  {func(s *securityContext) { s.RunAsUser, s.SupplementalGroups = number(1000), []int64{5000} }, 1000, 1000, []int{2000, 2001, 5000}, false},
		"merge": {func(s *securityContext) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = number(1000), []int64{5000}, merge
		}, 1000, 1000, []int{2000, 2001, 5000}, true},
		"strict": {func(s *securityContext) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = number(1000), []int64{5000}, strict
		}, 1000, 1000, []int{5000}, true},
	} {
		if tt.newer && own == nil {
			continue
		}
		f := factsOf(t, pod, criclient.Security(tt.change))
		got := slices.DeleteFunc(slices.Sorted(slices.Values(f.Groups)), func(g int) bool { return g == f.GID })
		if f.UID != tt.uid || f.GID != tt.gid || !slices.Equal(slices.Compact(got), tt.groups) {
			t.Errorf("%s: user %d, group %d, others %v; want %d, %d, %v", name, f.UID, f.GID, got, tt.uid, tt.gid, tt.groups)
		}
	}
	if own != nil {
		ctr := sleeper(t, pod, criclient.Security(func(s *securityContext) { s.RunAsUser = number(1000) }))
		if u := ctr.Status(t).User.GetLinux(); u.GetUid() != 1000 || u.GetGid() != 1000 || !slices.Contains(u.GetSupplementalGroups(), 2000) {
			t.Errorf("user in the status: %v", u)
		}
	}
}

func TestImageUser(t *testing.T) {
	t.Parallel()
	for user, want := range map[string][2]int{"sailor": {1000, 1000}, "1000:33": {1000, 33}, "sailor:crew": {1000, 2000}, "65534": {65534, 65534}} {
		t.Run(user, func(t *testing.T) {
			img := variant(t, node, func(c *imgspec.ImageConfig) { c.User = user })
			out := node.Pod(t, criclient.HostNetwork).Output(t, img, criclient.Run("/probe", "facts"))
			if f := parseFacts(t, out); f.UID != want[0] || f.GID != want[1] {
				t.Errorf("ran as %d:%d; want %d:%d", f.UID, f.GID, want[0], want[1])
			}
		})
	}
}

// What the default profile forbids needs a call that the capabilities allow.
func TestSeccomp(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	profile := func(typ cri.SecurityProfile_ProfileType, file string) criclient.ContainerMod {
		return criclient.Security(func(s *securityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: typ, LocalhostRef: file}
		})
	}
	file := filepath.Join(t.TempDir(), "no-mkdir.json")
	text := `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	runtimeDefault := profile(cri.SecurityProfile_RuntimeDefault, "")
	unconfined := profile(cri.SecurityProfile_Unconfined, "")
	localhost := profile(cri.SecurityProfile_Localhost, file)
	for _, tt := range []struct {
		name, call, want string
		mod              criclient.ContainerMod
	}{
		{"default", "keyctl", "EPERM", runtimeDefault},
		{"default", "mkdir", "ok", runtimeDefault},
		{"unconfined", "keyctl", "ok", unconfined},
		{"localhost", "mkdir", "ENOTSUP", localhost},
	} {
		got := try(t, pod, tt.call, tt.mod)
		if tt.call == "keyctl" && tt.want == "EPERM" && got == "ENOSYS" {
			got = "EPERM" // of profiles that hide what they forbid
		}
		if tt.call == "keyctl" && tt.want == "ok" && (got == "ENOKEY" || got == "EACCES" && kernel.Has(kernel.SELinux)) {
			got = "ok" // the profile let it pass
		}
		if got != tt.want {
			t.Errorf("%s profile: %s gives %s; want %s", tt.name, tt.call, got, tt.want)
		}
	}
	if f := factsOf(t, pod, unconfined); f.Seccomp != 0 {
		t.Errorf("unconfined: seccomp mode %d", f.Seccomp)
	}
	if _, err := pod.TryCreate(t.Context(), pod.ContainerConfig(probe, profile(cri.SecurityProfile_Localhost, "/no/such/profile.json"))); err == nil {
		t.Error("a profile that is not there was accepted")
	}
}

// unconfinedType is for programs that need more than Debian's policy gives container_t, such as nginx its chown(2).
func unconfinedType(c *cri.ContainerConfig) {
	if kernel.Has(kernel.SELinux) {
		c.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Type: "spc_t"}
	}
}

func TestSELinuxLabels(t *testing.T) {
	t.Parallel()
	kernel.Require(t, kernel.SELinux)
	one, two := node.Pod(t), node.Pod(t)
	a, b := factsOf(t, one).Label, factsOf(t, two).Label
	if !strings.Contains(a, ":container_t:s0:c") || a == b {
		t.Errorf("labels of containers in two pods: %q and %q; want container_t with categories of their own", a, b)
	}
	if c := factsOf(t, one).Label; c != a {
		t.Errorf("labels of two containers of a pod: %q and %q", a, c)
	}
	level := criclient.Security(func(sec *cri.LinuxContainerSecurityContext) {
		sec.SelinuxOptions = &cri.SELinuxOption{Level: "s0:c1001,c1002"}
	})
	if got := factsOf(t, one, level).Label; !strings.HasSuffix(got, ":container_t:s0:c1001,c1002") {
		t.Errorf("label of a container with a level of its own: %q", got)
	}
	// It writes in a root of its own, and reads the pod's files.
	if got := one.Output(t, probe, level, criclient.Shell("cat /etc/hostname > /tmp/file && echo written")); got != "written\n" {
		t.Errorf("a container with a level of its own prints %q", got)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("readable\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mount := &cri.Mount{HostPath: dir, ContainerPath: "/mnt", SelinuxRelabel: true}
	if got := one.Output(t, probe, criclient.Mount(mount), criclient.Run("cat", "/mnt/f")); got != "readable\n" {
		t.Errorf("a relabelled file reads %q", got)
	}
	label, err := selinux.FileLabel(dir)
	if _, categories, _ := strings.Cut(a, ":container_t:"); err != nil || !strings.HasSuffix(label, ":container_file_t:"+categories) {
		t.Errorf("the directory has the label %q, %v; want container_file_t with the categories of %q", label, err, a)
	}
	// What is the one pod's is not the other's.
	spy := two.Container(t, probe, criclient.Mount(&cri.Mount{HostPath: dir, ContainerPath: "/mnt"}), criclient.Run("cat", "/mnt/f"))
	if st := spy.WaitExit(t); st.ExitCode == 0 && selinux.EnforceMode() == selinux.Enforcing {
		t.Error("a pod reads a directory that was relabelled for another")
	}
}
