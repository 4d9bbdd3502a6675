package spec

import (
	"errors"
	"strings"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refusal is a change to a good input, and what the error about it must say.
type refusal struct {
	change func(*Input)
	says   []string
}

var refusals = map[string]refusal{
	"no container":        {func(in *Input) { in.Container = nil }, []string{"container config"}},
	"privileged in a pod": {func(in *Input) { security(in).Privileged = true }, []string{"security_context.privileged", "true", "pod"}},
	"rootfs relative":     {func(in *Input) { in.Rootfs = "rootfs" }, []string{"rootfs", `"rootfs"`, "absolute"}},
	"nothing to run":      {func(in *Input) { in.Container.Command = nil }, []string{"command", "set command or args"}},
	"empty program":       {func(in *Input) { in.Container.Command = []string{"", "x"} }, []string{"command[0]"}},
	"NUL in an argument":  {func(in *Input) { in.Container.Args = []string{"a\x00b"} }, []string{"argument 1", `"a\x00b"`, "NUL"}},
	"relative directory":  {func(in *Input) { in.Container.WorkingDir = "tmp" }, []string{"working_dir", `"tmp"`}},
	"env without name": {func(in *Input) { in.Container.Envs = []*cri.KeyValue{{Value: []byte("x")}} },
		[]string{"envs[0].key", "not empty"}},
	"env with = in its name": {func(in *Input) { in.Container.Envs = []*cri.KeyValue{{Key: "A=B"}} }, []string{"envs[0].key", `"A=B"`}},
	"env that is not text": {func(in *Input) { in.Container.Envs = []*cri.KeyValue{{Key: "A", Value: []byte{0xff}}} },
		[]string{"variable A", `"\xff"`, "UTF-8"}},
	"group without user": {func(in *Input) { security(in).RunAsGroup = &cri.Int64Value{Value: 7} },
		[]string{"run_as_group", `"7"`, "run_as_user"}},
	"two users": {func(in *Input) {
		security(in).RunAsUser, security(in).RunAsUsername = &cri.Int64Value{}, "web"
	}, []string{"run_as_username", `"web"`}},
	"unknown capability": {func(in *Input) {
		security(in).Capabilities = &cri.Capability{AddCapabilities: []string{"CHOWN", "FLY"}}
	}, []string{"add_capabilities", `"FLY"`}},
	"unknown capability to drop": {func(in *Input) {
		security(in).Capabilities = &cri.Capability{DropCapabilities: []string{"cap_"}}
	}, []string{"drop_capabilities", `"cap_"`}},
	"unknown ambient capability": {func(in *Input) {
		security(in).Capabilities = &cri.Capability{AddAmbientCapabilities: []string{""}}
	}, []string{"add_ambient_capabilities", `""`}},
	"unknown default capability": {func(in *Input) { in.DefaultCapabilities = []string{"CHOWN"} },
		[]string{"default capabilities", `"CHOWN"`, "daemon"}},
	"namespace mode": {func(in *Input) { security(in).NamespaceOptions.Network = 9 },
		[]string{"namespace_options.network", `"9"`, "POD"}},
	"target without one": {func(in *Input) {
		security(in).NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "c9"}
	}, []string{"namespace_options.pid", "TARGET", "c9"}},
	"shared PIDs in a pod without": {func(in *Input) { security(in).NamespaceOptions.Pid = cri.NamespaceMode_POD },
		[]string{"namespace_options.pid", "POD", "CONTAINER"}},
	"user namespace of its own": {func(in *Input) {
		security(in).NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_CONTAINER}
	}, []string{"userns_options.mode", "CONTAINER"}},
	"out of the pod's user namespace": {func(in *Input) {
		security(in).NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_NODE}
		in.Namespaces[rspec.UserNamespace] = "/ns/user"
	}, []string{"userns_options.mode", "NODE"}},
	"half a mapping": {func(in *Input) { in.UIDs = []rspec.LinuxIDMapping{{Size: 1}} }, []string{"userns_options", "give both"}},
	"relative namespace": {func(in *Input) { in.Namespaces[rspec.NetworkNamespace] = "net" },
		[]string{"namespaces.network", `"net"`}},
	"sysctl that climbs": {func(in *Input) {
		in.Namespaces[rspec.NetworkNamespace] = ""
		in.DefaultSysctls = map[string]string{"net/../kernel/core_pattern": "|/x"}
	}, []string{"sysctls", "net/../kernel/core_pattern"}},
	"sysctl with a hole": {func(in *Input) {
		in.Namespaces[rspec.IPCNamespace] = ""
		in.DefaultSysctls = map[string]string{"fs.mqueue..x": "1"}
	}, []string{"sysctls", "fs.mqueue..x"}},
	"seccomp type":   {func(in *Input) { security(in).Seccomp = &cri.SecurityProfile{ProfileType: 7} }, []string{"seccomp.profile_type", `"7"`}},
	"seccomp string": {func(in *Input) { security(in).SeccompProfilePath = "strict" }, []string{"seccomp_profile_path", `"strict"`}},
	"seccomp unread": {func(in *Input) { localhost(in, "/p.json", "") }, []string{"localhost_ref", `"/p.json"`, "not read"}},
	"seccomp off": {func(in *Input) { localhost(in, "/p.json", "{}"); in.Host.Seccomp = false },
		[]string{"localhost_ref", `"/p.json"`, "no seccomp"}},
	"seccomp relative": {func(in *Input) { localhost(in, "p.json", "{}") }, []string{"localhost_ref", `"p.json"`, "absolute"}},
	"seccomp garbage":  {func(in *Input) { localhost(in, "/p.json", "[") }, []string{"localhost_ref", `"/p.json"`, "JSON"}},
	"seccomp empty":    {func(in *Input) { localhost(in, "/p.json", "{}") }, []string{"localhost_ref", "defaultAction"}},
	"seccomp two archs": {func(in *Input) {
		localhost(in, "/p.json", `{"defaultAction":"SCMP_ACT_LOG","architectures":["SCMP_ARCH_X86"],"archMap":[{}]}`)
	}, []string{"localhost_ref", "archMap"}},
	"seccomp nameless": {func(in *Input) { localhost(in, "/p.json", `{"defaultAction":"SCMP_ACT_LOG","syscalls":[{}]}`) },
		[]string{"localhost_ref", "names"}},
	"apparmor type":   {func(in *Input) { security(in).Apparmor = &cri.SecurityProfile{ProfileType: 7} }, []string{"apparmor.profile_type", `"7"`}},
	"apparmor string": {func(in *Input) { security(in).ApparmorProfile = "localhost/" }, []string{"apparmor_profile", `"localhost/"`}},
	"apparmor unnamed": {func(in *Input) {
		security(in).Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost}
	}, []string{"apparmor.localhost_ref", "empty"}},
	"apparmor off":      {func(in *Input) { security(in).ApparmorProfile = "localhost/x" }, []string{"apparmor.localhost_ref", `"x"`, "off"}},
	"masked path":       {func(in *Input) { security(in).MaskedPaths = []string{"/a", "b"} }, []string{"masked_paths[1]", `"b"`}},
	"read-only path":    {func(in *Input) { security(in).ReadonlyPaths = []string{""} }, []string{"readonly_paths[0]", "empty"}},
	"OOM score":         {resources(&cri.LinuxContainerResources{OomScoreAdj: -1001}), []string{"oom_score_adj", "-1001"}},
	"CPU shares":        {resources(&cri.LinuxContainerResources{CpuShares: -2}), []string{"cpu_shares", "-2"}},
	"CPU quota":         {resources(&cri.LinuxContainerResources{CpuQuota: 999}), []string{"cpu_quota", "999"}},
	"CPU period":        {resources(&cri.LinuxContainerResources{CpuPeriod: 1000001}), []string{"cpu_period", "1000001"}},
	"CPU set":           {resources(&cri.LinuxContainerResources{CpusetCpus: "0-"}), []string{"cpuset_cpus", `"0-"`}},
	"memory nodes":      {resources(&cri.LinuxContainerResources{CpusetMems: "a"}), []string{"cpuset_mems", `"a"`}},
	"memory":            {resources(&cri.LinuxContainerResources{MemoryLimitInBytes: -2}), []string{"memory_limit_in_bytes", "-2"}},
	"swap":              {resources(&cri.LinuxContainerResources{MemorySwapLimitInBytes: -2}), []string{"memory_swap_limit", "-2"}},
	"swap alone":        {resources(&cri.LinuxContainerResources{MemorySwapLimitInBytes: 5}), []string{"memory_swap_limit", "5", "memory_limit"}},
	"swap below memory": {resources(&cri.LinuxContainerResources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 5}), []string{"memory_swap_limit", "5", "9"}},
	"page size": {resources(&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2Mi"}}}),
		[]string{"hugepage_limits[0].page_size", `"2Mi"`}},
	"page size twice": {resources(&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "2MB"}}}),
		[]string{"hugepage_limits[1]", "twice"}},
	"unified path":   {resources(&cri.LinuxContainerResources{Unified: map[string]string{"../memory.max": "1"}}), []string{"unified", "../memory.max"}},
	"unified action": {resources(&cri.LinuxContainerResources{Unified: map[string]string{"cgroup.kill": "1"}}), []string{"unified", "cgroup.kill"}},
	"pids limit":     {func(in *Input) { in.PidsLimit = -1 }, []string{"pids limit", "-1"}},
	"mount at root":  {mount(&cri.Mount{ContainerPath: "/a/.."}), []string{"mounts[0].container_path", `"/a/.."`}},
	"mount relative": {mount(&cri.Mount{ContainerPath: "data"}), []string{"mounts[0].container_path", `"data"`}},
	"mount nowhere":  {mount(nil), []string{"mounts[0].container_path"}},
	"mount of nothing": {func(in *Input) { in.Mounts = []Mount{{CRI: &cri.Mount{ContainerPath: "/a"}}} },
		[]string{"mounts[0].host_path", "empty"}},
	"image and host path": {mount(&cri.Mount{ContainerPath: "/a", HostPath: "/h", Image: &cri.ImageSpec{}}),
		[]string{"mounts[0].host_path", `"/h"`, "image"}},
	"mount propagation": {mount(&cri.Mount{ContainerPath: "/a", Propagation: 5}), []string{"mounts[0].propagation", `"5"`}},
	"mount option":      {mount(&cri.Mount{ContainerPath: "/a", MountOptions: []string{"noexec", "rw"}}), []string{"mounts[0].mount_options[1]", `"rw"`}},
	"recursive, writable": {mount(&cri.Mount{ContainerPath: "/a", RecursiveReadOnly: true}),
		[]string{"mounts[0].recursive_read_only", "readonly"}},
	"recursive, shared": {mount(&cri.Mount{ContainerPath: "/a", RecursiveReadOnly: true, Readonly: true, Propagation: 1}),
		[]string{"mounts[0].recursive_read_only", "PROPAGATION_PRIVATE"}},
	"recursive, old kernel": {func(in *Input) {
		mount(&cri.Mount{ContainerPath: "/a", RecursiveReadOnly: true, Readonly: true})(in)
		in.Host.RecursiveReadOnly = false
	}, []string{"mounts[0].recursive_read_only", "kernel"}},
	"half an id mapping": {mount(&cri.Mount{ContainerPath: "/a", UidMappings: []*cri.IDMapping{{Length: 1}}}),
		[]string{"mounts[0].uidMappings", "give both"}},
	"empty id mapping": {mount(&cri.Mount{ContainerPath: "/a", GidMappings: []*cri.IDMapping{nil}}), []string{"mounts[0].gidMappings[0].length"}},
	"pod's file":       {func(in *Input) { in.HostsPath = "hosts" }, []string{"/etc/hosts", `"hosts"`}},
	"device path":      {device("dev/x", "c", "r"), []string{"devices[0].container_path", `"dev/x"`}},
	"device at root":   {device("/..", "c", "r"), []string{"devices[0].container_path"}},
	"device rights":    {device("/dev/x", "c", "rx"), []string{"devices[0].permissions", `"rx"`}},
	"no device rights": {device("/dev/x", "c", ""), []string{"devices[0].permissions"}},
	"device type":      {device("/dev/x", "p", "r"), []string{"devices[0].host_path", `"p"`}},
}

func security(in *Input) *cri.LinuxContainerSecurityContext {
	return in.Container.Linux.SecurityContext
}

func resources(r *cri.LinuxContainerResources) func(*Input) {
	return func(in *Input) { in.Container.Linux.Resources = r }
}

func mount(m *cri.Mount) func(*Input) {
	return func(in *Input) { in.Mounts = []Mount{{CRI: m, Source: "/srv"}} }
}

func device(path, kind, permissions string) func(*Input) {
	return func(in *Input) {
		in.Devices = []Device{{Node: rspec.LinuxDevice{Path: path, Type: kind}, Permissions: permissions}}
	}
}

func localhost(in *Input, ref, profile string) {
	in.Container.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: ref}
	if profile != "" {
		in.LocalhostSeccomp = []byte(profile)
	}
}

// TestErrors: each refusal wraps ErrInvalid and names the field and the value.
func TestErrors(t *testing.T) {
	for name, tt := range refusals {
		t.Run(name, func(t *testing.T) {
			in := baseInput()
			tt.change(&in)
			out, err := Container(in)
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("got %v, %v; want an ErrInvalid", out, err)
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

// TestErrorIsShort: a request may hold megabytes, and its error goes to logs and events.
func TestErrorIsShort(t *testing.T) {
	in := baseInput()
	in.Container.WorkingDir = strings.Repeat("x", 1<<20)
	if _, err := Container(in); err == nil || len(err.Error()) > 500 {
		t.Errorf("got an error of %d bytes", len(err.Error()))
	}
}
