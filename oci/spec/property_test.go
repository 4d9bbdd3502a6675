package spec

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// dice makes choices out of bytes, so that random tests and the fuzzer share one generator. When the bytes are used
// up it always chooses the first.
type dice []byte

func (d *dice) roll(sides int) int {
	if len(*d) == 0 {
		return 0
	}
	b := (*d)[0]
	*d = (*d)[1:]
	return int(b) % sides
}

func (d *dice) coin() bool { return d.roll(2) == 1 }

// pick takes the usual value, the first, nearly always: an input has fifty choices, and one bad one gets it refused.
func pick[T any](d *dice, choices ...T) T {
	if d.roll(16) < 15 {
		return choices[0]
	}
	return choices[d.roll(len(choices))]
}

func several[T any](d *dice, choices ...T) []T {
	var out []T
	for range d.roll(4) {
		out = append(out, pick(d, choices...))
	}
	return out
}

// Paths and values as a careless or hostile client might send them.
var (
	goodPaths = []string{"/data", "/data/", "/data/a", "/data/../etc", "/dev", "/dev/shm", "/dev/pts/../../sys", "/sys", "/sys/fs/cgroup",
		"/proc", "/etc/hosts", "/etc//hostname", "/etc/resolv.conf", "/./x", "/../../x/y", "/x/y/z"}
	badPaths   = []string{"data", "..", "", "/", "/..", "/a\x00b"}
	capChoices = []string{"NET_ADMIN", "CAP_CHOWN", "kill", "ALL", "SYS_ADMIN", "NET_BIND_SERVICE", "CAP_SYS_RESOURCE"}
)

// input makes any input at all.
func (d *dice) input() Input {
	in := baseInput()
	d.host(&in.Host)
	in.Rootfs = pick(d, in.Rootfs, "", "rootfs", "/a/../b")
	in.Image = imgspec.ImageConfig{
		Entrypoint: several(d, "/init", "", "--"), Cmd: several(d, "serve", "\xff"),
		Env: several(d, "A=1", "B", "=", "PATH=", "HOME="), WorkingDir: pick(d, "", "/srv", "srv", "../.."),
	}
	in.User = User{UID: uint32(d.roll(3)), Home: pick(d, "", "/root")}
	in.Hostname = pick(d, "web-0", "")
	in.ShmPath = pick(d, in.ShmPath, "", "shm")
	in.HostsPath = pick(d, "", "/run/hosts")
	in.DefaultSysctls = map[string]string{pick(d, []string{"net.core.somaxconn", "fs.mqueue.x", "kernel.panic", "user.max"}[d.roll(4)], "net/../x"): "1"}
	if d.coin() {
		in.UIDs = []rspec.LinuxIDMapping{{HostID: 1000, Size: uint32(d.roll(9) + 1)}}
		in.GIDs = slices.Clone(in.UIDs)
	}
	for _, kind := range []rspec.LinuxNamespaceType{rspec.PIDNamespace, rspec.NetworkNamespace, rspec.IPCNamespace, rspec.UTSNamespace, rspec.UserNamespace} {
		in.Namespaces[kind] = pick(d, []string{"", "/ns/" + string(kind)}[d.roll(2)], "/ns/../ns/x", "ns")
	}
	for range d.roll(6) {
		in.Mounts = append(in.Mounts, d.mount())
	}
	for range d.roll(3) {
		in.Devices = append(in.Devices, Device{Permissions: pick(d, "rwm", "r", "", "x"),
			Node: rspec.LinuxDevice{Path: pick(d, "/dev/x", "/dev/../y", "/dev/fuse", "z"), Type: pick(d, "c", "b", "u", "p", "")}})
	}
	in.Sandbox.Linux.SecurityContext.Privileged = pick(d, true, false)
	in.Sandbox.Linux.SecurityContext.NamespaceOptions = d.namespaceOptions()
	in.Container = d.container()
	return in
}

func (d *dice) host(h *Host) {
	h.CgroupV2, h.SwapLimits, h.Seccomp, h.AppArmor = !d.coin(), !d.coin(), !d.coin(), !d.coin()
	h.SELinux, h.OOMScoreFloor, h.RecursiveReadOnly = d.coin(), d.coin(), !d.coin()
	h.Controllers["hugetlb"], h.Controllers["memory"] = !d.coin(), !d.coin()
	h.Arch = pick(d, "amd64", "", "arm64", "m68k")
	h.Capabilities = pick(d, h.Capabilities, nil, []string{"CAP_CHOWN"})
}

func (d *dice) mount() Mount {
	return Mount{Source: pick(d, "/srv/data", "/srv/../x", "srv", ""), CRI: &cri.Mount{
		ContainerPath: pick(d, append([]string{goodPaths[d.roll(len(goodPaths))]}, badPaths...)...),
		Readonly:      d.coin(), RecursiveReadOnly: d.roll(16) == 15,
		Propagation:  pick(d, cri.MountPropagation(d.roll(3)), 3),
		MountOptions: several(d, "noexec", "nodev", "nosuid", "rw"),
		UidMappings:  pick(d, nil, []*cri.IDMapping{{Length: 1}}), GidMappings: pick(d, nil, []*cri.IDMapping{{Length: 1}}),
	}}
}

func (d *dice) namespaceOptions() *cri.NamespaceOption {
	mode := func() cri.NamespaceMode {
		return pick(d, cri.NamespaceMode(d.roll(3)), cri.NamespaceMode_TARGET, 9)
	}
	return &cri.NamespaceOption{Network: mode(), Pid: mode(), Ipc: mode()}
}

func (d *dice) container() *cri.ContainerConfig {
	c := &cri.ContainerConfig{
		Command: pick(d, []string{"/bin/web"}, nil, []string{""}), Args: several(d, "-v", "\x00"),
		WorkingDir: pick(d, "", "/tmp", "tmp"), Tty: d.coin(),
		Envs: several(d, &cri.KeyValue{Key: pick(d, "A", "HOME", "TERM"), Value: []byte("1")}, &cri.KeyValue{Key: "HOME"}, &cri.KeyValue{}, nil),
	}
	if d.roll(8) == 7 {
		return c // no Linux part at all
	}
	c.Linux = &cri.LinuxContainerConfig{
		Resources: &cri.LinuxContainerResources{
			CpuQuota: pick(d, int64(0), -1, 5000, 5), MemoryLimitInBytes: pick(d, int64(0), 1<<20, -1, -9),
			MemorySwapLimitInBytes: pick(d, int64(0), 1<<21, 5), OomScoreAdj: pick(d, int64(0), -998, 5000),
			Unified: map[string]string{pick(d, []string{"memory.high", "foo.bar"}[d.roll(2)], "x", "cgroup.procs"): "1"},
		},
		SecurityContext: &cri.LinuxContainerSecurityContext{
			Privileged: d.coin(), ReadonlyRootfs: d.coin(), NoNewPrivs: d.coin(),
			MaskedPaths: several(d, "/proc/kcore", "/proc/kcore/", "kcore"), ReadonlyPaths: several(d, "/proc/sys", "/proc/../sys"),
			NamespaceOptions:   d.namespaceOptions(),
			SeccompProfilePath: pick(d, "", "runtime/default", "unconfined", "localhost//x", "?"),
			ApparmorProfile:    pick(d, "", "localhost/x", "?"),
			Capabilities: &cri.Capability{AddCapabilities: d.capabilities(),
				DropCapabilities: d.capabilities(), AddAmbientCapabilities: d.capabilities()},
		},
	}
	return c
}

func (d *dice) capabilities() []string {
	return several(d, capChoices[d.roll(len(capChoices))], "NOT_ONE")
}

// check holds for every input: either an ErrInvalid, or a spec with the properties that the rest of Orlop counts on.
func check(t *testing.T, in Input) (accepted bool) {
	t.Helper()
	before, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := Container(in)
	if err != nil {
		if !errors.Is(err, ErrInvalid) || out != nil {
			t.Errorf("refused with %v, %v", out, err)
		}
		return false
	}
	checkMounts(t, out.Spec.Mounts)
	checkProcess(t, out.Spec.Process)
	checkLinux(t, in, out.Spec.Linux)
	checkCapabilities(t, in, out.Spec.Process.Capabilities)

	after, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(before), string(after)); diff != "" {
		t.Errorf("the input was changed: %s", diff)
	}
	again, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(out, again); diff != "" {
		t.Errorf("the same input gives another spec: %s", diff)
	}
	return true
}

func checkMounts(t *testing.T, mounts []rspec.Mount) {
	t.Helper()
	seen := map[string]bool{}
	for i, m := range mounts {
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) != m.Destination || m.Destination == "/" {
			t.Errorf("mount destination %q", m.Destination)
		}
		if seen[m.Destination] {
			t.Errorf("two mounts at %s", m.Destination)
		}
		seen[m.Destination] = true
		if m.Type == "bind" && (!path.IsAbs(m.Source) || path.Clean(m.Source) != m.Source) {
			t.Errorf("mount source %q", m.Source)
		}
		for _, earlier := range mounts[:i] {
			if below(earlier.Destination, m.Destination) {
				t.Errorf("mount at %s would cover %s", m.Destination, earlier.Destination)
			}
		}
	}
}

func checkProcess(t *testing.T, p *rspec.Process) {
	t.Helper()
	if len(p.Args) == 0 || p.Args[0] == "" || !path.IsAbs(p.Cwd) || path.Clean(p.Cwd) != p.Cwd {
		t.Errorf("args %q, cwd %q", p.Args, p.Cwd)
	}
	seen := map[string]bool{}
	for _, line := range p.Env {
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" || seen[key] || strings.Contains(line, "\x00") {
			t.Errorf("environment %q", p.Env)
		}
		seen[key] = true
		if key == "HOME" && value == "" {
			t.Error("HOME is empty")
		}
	}
	if !seen["PATH"] || !seen["HOME"] || p.Terminal && !seen["TERM"] {
		t.Errorf("environment %q lacks PATH, HOME or TERM", p.Env)
	}
	if p.OOMScoreAdj == nil {
		t.Error("no OOM score: the container would inherit the monitor's")
	}
}

func checkLinux(t *testing.T, in Input, l *rspec.Linux) {
	t.Helper()
	kinds := map[rspec.LinuxNamespaceType]string{}
	for _, ns := range l.Namespaces {
		if _, twice := kinds[ns.Type]; twice || ns.Path != "" && path.Clean(ns.Path) != ns.Path {
			t.Errorf("namespaces %v", l.Namespaces)
		}
		kinds[ns.Type] = ns.Path
	}
	if p, ok := kinds[rspec.MountNamespace]; !ok || p != "" {
		t.Errorf("no mount namespace of its own: %v", l.Namespaces)
	}
	userPath, user := kinds[rspec.UserNamespace]
	if mapped := len(l.UIDMappings) > 0; mapped != (user && userPath == "") {
		t.Errorf("user namespace %q and mappings %v", userPath, l.UIDMappings)
	}
	for key := range l.Sysctl {
		if p, made := kinds[sysctlNamespace(dotted(key))]; !made || p != "" {
			t.Errorf("sysctl %s without a namespace of the container's own", key)
		}
	}
	privileged := in.Container.GetLinux().GetSecurityContext().GetPrivileged()
	for _, rule := range l.Resources.Devices {
		if rule.Allow && rule.Major == nil && !privileged {
			t.Errorf("every device is allowed: %+v", rule)
		}
	}
	if privileged && (l.Seccomp != nil || l.MaskedPaths != nil || l.ReadonlyPaths != nil) {
		t.Error("a privileged container is restricted")
	}
}

func checkCapabilities(t *testing.T, in Input, c *rspec.LinuxCapabilities) {
	t.Helper()
	user := in.Namespaces[rspec.UserNamespace] != "" || len(in.UIDs) > 0
	for _, name := range c.Bounding {
		if !user && !slices.Contains(in.Host.Capabilities, name) {
			t.Errorf("%s is not there to give", name)
		}
	}
	if !slices.Equal(c.Bounding, c.Permitted) || !slices.Equal(c.Bounding, c.Effective) || !slices.Equal(c.Inheritable, c.Ambient) {
		t.Errorf("capability sets %+v", c)
	}
	for _, name := range c.Ambient {
		if !slices.Contains(c.Permitted, name) {
			t.Errorf("ambient %s is not permitted", name)
		}
	}
}

// TestProperties throws many inputs, some of which must get through for the test to mean anything.
func TestProperties(t *testing.T) {
	const rounds = 10000
	random := rand.New(rand.NewPCG(1, 2))
	accepted := 0
	for range rounds {
		d := make(dice, 250)
		for i := range d {
			d[i] = byte(random.Uint32())
		}
		if check(t, d.input()) {
			accepted++
		}
	}
	if accepted < rounds/20 {
		t.Errorf("only %d of %d inputs were accepted: the generator is too rough", accepted, rounds)
	}
	t.Logf("%d of %d inputs accepted", accepted, rounds)
}

func FuzzContainer(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("\x01\x01\x01\x01\x01\x01\x01\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := dice(slices.Clone(data))
		check(t, d.input())
	})
}

// FuzzLocalhostSeccomp: the profile is a file that someone wrote.
func FuzzLocalhostSeccomp(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[null]}`))
	f.Fuzz(func(t *testing.T, profile []byte) {
		in := baseInput()
		localhost(&in, "/p.json", "{}")
		in.LocalhostSeccomp = profile
		out, err := Container(in)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("refused with %v", err)
			}
			return
		}
		if s := out.Spec.Linux.Seccomp; s == nil || s.DefaultAction == "" {
			t.Errorf("a profile was asked for and is not there: %+v", s)
		}
	})
}
