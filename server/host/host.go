// Package host finds out what this machine offers to containers.
package host

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/label"
)

// Detect looks once, at the start of the daemon. It finds no devices: those come and go, see [Devices].
func Detect(cgroups cgroup.Host) (spec.Host, error) {
	h := spec.Host{
		CgroupV2:          cgroups.V2,
		Controllers:       cgroups.Controllers,
		SwapLimits:        swapLimits(cgroups),
		SELinux:           label.Enabled(),
		AppArmor:          appArmor(),
		Seccomp:           seccomp(),
		NoX32:             noX32(),
		RecursiveReadOnly: recursiveReadOnly(),
	}
	var err error
	if h.Capabilities, err = capabilities(); err != nil {
		return spec.Host{}, err
	}
	if h.KernelMajor, h.KernelMinor, err = kernelVersion(); err != nil {
		return spec.Host{}, err
	}
	h.OOMScoreAdj, err = oomScoreAdj()
	h.OOMScoreFloor = !slices.Contains(h.Capabilities, "CAP_SYS_RESOURCE")
	return h, err
}

// capabilities are those that this process may give to another: permitted, and within its bounds.
func capabilities() ([]string, error) {
	own, err := capability.NewPid2(0)
	if err == nil {
		err = own.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("capabilities: %w", err)
	}
	last, err := capability.LastCap()
	if err != nil {
		return nil, fmt.Errorf("capabilities: %w", err)
	}
	var names []string
	for c := capability.Cap(0); c <= last; c++ {
		if own.Get(capability.PERMITTED, c) && own.Get(capability.BOUNDING, c) {
			names = append(names, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return names, nil
}

func kernelVersion() (major, minor int, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return 0, 0, os.NewSyscallError("uname", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return 0, 0, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return major, minor, nil
}

func oomScoreAdj() (int, error) {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// swapLimits tells whether the kernel counts swap: on cgroup v1 it can be built or booted without.
func swapLimits(cgroups cgroup.Host) bool {
	if !cgroups.Controllers["memory"] {
		return false
	}
	if cgroups.V2 {
		_, err := os.Stat("/proc/swaps") // it is there if the kernel has swap at all
		return err == nil
	}
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	return err == nil
}

func appArmor() bool {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(data), "Y")
}

// seccomp asks whether filters can be set: a null one is refused with EFAULT where they can (seccomp(2)).
func seccomp() bool {
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0)
	return errors.Is(err, unix.EFAULT)
}

// recursiveReadOnly asks for mount_setattr(2), Linux 5.12: with a bad descriptor it answers EBADF where it exists.
func recursiveReadOnly() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return errors.Is(err, unix.EBADF)
}

// noX32 is true if the kernel's configuration is at hand and has no x32 ABI. Asking the kernel itself, by an x32 call,
// would be the end of a daemon that runs under a filter.
func noX32() bool {
	config, err := kernelConfig()
	if err != nil {
		return false
	}
	for _, option := range []string{"\nCONFIG_X86_X32_ABI=y\n", "\nCONFIG_X86_X32=y\n"} { // before Linux 5.18: the latter
		if strings.Contains(config, option) {
			return false
		}
	}
	return strings.Contains(config, "\nCONFIG_X86_64=y\n")
}

// kernelConfig is what the kernel was built with: from itself, or as distributions install it.
func kernelConfig() (string, error) {
	if f, err := os.Open("/proc/config.gz"); err == nil {
		defer f.Close()
		unpacked, err := gzip.NewReader(f)
		if err != nil {
			return "", err
		}
		text, err := io.ReadAll(unpacked)
		return string(text), err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", os.NewSyscallError("uname", err)
	}
	text, err := os.ReadFile("/boot/config-" + unix.ByteSliceToString(u.Release[:]))
	return string(text), err
}
