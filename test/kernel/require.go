package kernel

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Need is one thing that a test needs from the machine.
type Need struct {
	what string
	have func() bool
	// given: no package can be installed for it and no privilege taken; the machine has it or not. Such a need
	// skips also under REQUIRE_KERNEL=1.
	given bool
}

// Root is needed for namespaces, mounts and cgroups.
var Root = Need{what: "root", have: func() bool { return os.Geteuid() == 0 }}

// CgroupV2 is a machine whose controllers are all in the unified hierarchy.
var CgroupV2 = Need{what: "cgroup v2", given: true, have: cgroupV2}

// CgroupV1 is a machine with controllers in hierarchies of version 1.
var CgroupV1 = Need{what: "cgroup v1", given: true, have: func() bool { return !cgroupV2() }}

// Systemd is a machine that systemd runs.
var Systemd = Need{what: "systemd as PID 1", given: true, have: func() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}}

// IPVS is a kernel with the module ip_vs.
var IPVS = Need{what: "IPVS in the kernel", given: true, have: func() bool {
	_, err := os.Stat("/proc/net/ip_vs")
	return err == nil
}}

// SELinux is a machine with SELinux enabled.
var SELinux = Need{what: "SELinux", given: true, have: func() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}}

func cgroupV2() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// Command is a program that a package of the distribution brings.
func Command(name string) Need {
	return Need{what: "the program " + name, have: func() bool { _, err := exec.LookPath(name); return err == nil }}
}

// Controller is a cgroup controller.
func Controller(name string) Need {
	return Need{what: "cgroup controller " + name, given: true, have: func() bool {
		if cgroupV2() {
			raw, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
			return slices.Contains(strings.Fields(string(raw)), name)
		}
		_, err := os.Stat(filepath.Join("/sys/fs/cgroup", name))
		return err == nil
	}}
}

// Capability is one of this process's effective capabilities, by its number in capabilities(7).
func Capability(name string, number int) Need {
	return Need{what: name, given: true, have: func() bool { return hasCapability(number) }}
}

func hasCapability(number int) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[number/32].Effective&(1<<(number%32)) != 0
}

// Version is the oldest kernel that can do it.
func Version(major, minor int) Need {
	return Need{what: fmt.Sprintf("Linux %d.%d", major, minor), given: true, have: func() bool {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return false
		}
		var haveMajor, haveMinor int
		if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &haveMajor, &haveMinor); err != nil {
			return false
		}
		return haveMajor > major || haveMajor == major && haveMinor >= minor
	}}
}

// skips collects why tests were skipped, for the summary.
var skips = struct {
	mu sync.Mutex
	by map[string][]string // reason: tests
}{by: map[string][]string{}}

// Require skips the test unless all needs are met, and says why. With REQUIRE_KERNEL=1 (CI) it fails instead, unless
// what is missing is a property of the machine.
func Require(t testing.TB, needs ...Need) {
	t.Helper()
	for _, n := range needs {
		if n.have() {
			continue
		}
		if os.Getenv("REQUIRE_KERNEL") == "1" && !n.given {
			t.Fatalf("REQUIRE_KERNEL=1: needs %s", n.what)
		}
		Skip(t, "needs "+n.what)
	}
}

// Skip skips the test for a reason that the summary shows.
func Skip(t testing.TB, reason string) {
	t.Helper()
	skips.mu.Lock()
	skips.by[reason] = append(skips.by[reason], t.Name())
	skips.mu.Unlock()
	t.Skip(reason)
}

// Has tells whether a need is met, for tests that check more where they can.
func Has(n Need) bool { return n.have() }

// PrintSkips writes the reasons and how many tests each skipped.
func PrintSkips(w io.Writer) {
	skips.mu.Lock()
	defer skips.mu.Unlock()
	var reasons []string
	for reason := range skips.by {
		reasons = append(reasons, reason)
	}
	slices.Sort(reasons)
	for _, reason := range reasons {
		fmt.Fprintf(w, "skipped %d: %s: %s\n", len(skips.by[reason]), reason, strings.Join(skips.by[reason], ", "))
	}
}

// Main runs the tests and prints the summary of skips; use it in TestMain.
func Main(m *testing.M) int {
	code := m.Run()
	PrintSkips(os.Stdout)
	return code
}
