package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// defaultMasked are files of the kernel that tell about, or reach, the whole machine. The list of Kubernetes lacks some
// of them; whoever asks for any masking gets all. Sources: Kubernetes' ProcMount default, and CVE-2020-8694 for
// powercap, whose energy counters are a side channel.
var defaultMasked = []string{
	"/proc/acpi",
	"/proc/asound",
	"/proc/interrupts",
	"/proc/kcore",
	"/proc/keys",
	"/proc/latency_stats",
	"/proc/sched_debug",
	"/proc/scsi",
	"/proc/timer_list",
	"/proc/timer_stats",
	"/sys/devices/virtual/powercap",
	"/sys/firmware",
	"/sys/fs/selinux",
}

// defaultReadonly is Kubernetes' ProcMount default.
var defaultReadonly = []string{
	"/proc/bus",
	"/proc/fs",
	"/proc/irq",
	"/proc/sys",
	"/proc/sysrq-trigger",
}

// cleanPath returns an absolute path without ".", ".." and double slashes. ".." at the root stays at the root.
func cleanPath(field, p string) (string, error) {
	switch {
	case p == "":
		return "", invalid(field, p, "is empty; give an absolute path")
	case strings.ContainsRune(p, 0):
		return "", invalid(field, p, "has a NUL byte, which ends a path early; remove it")
	case !path.IsAbs(p):
		return "", invalid(field, p, "is not absolute; begin it with /")
	}
	return path.Clean(p), nil
}

// cleanPaths cleans each path and drops repetitions.
func cleanPaths(field string, in []string) ([]string, error) {
	var out []string
	for i, p := range in {
		clean, err := cleanPath(fmt.Sprintf("%s[%d]", field, i), p)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, clean) {
			out = append(out, clean)
		}
	}
	return out, nil
}

// below tells whether p is dir or lies in it. Both are clean.
func below(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// hiddenPaths masks files and makes files read-only. An empty list means what it says: it is how the kubelet asks for
// ProcMount Unmasked.
func (b *builder) hiddenPaths() error {
	if b.privileged() {
		return nil
	}
	masked := b.sec.GetMaskedPaths()
	if len(masked) > 0 {
		masked = slices.Concat(masked, defaultMasked)
	}
	var err error
	if b.spec.Linux.MaskedPaths, err = cleanPaths("linux.security_context.masked_paths", masked); err != nil {
		return err
	}
	b.spec.Linux.ReadonlyPaths, err = cleanPaths("linux.security_context.readonly_paths", b.sec.GetReadonlyPaths())
	return err
}
