package spec

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// resources sets the limits that the container starts with.
func (b *builder) resources() error {
	r, notes, err := Resources(b.in.Host, b.cfg.GetLinux().GetResources())
	if err != nil {
		return err
	}
	b.notes = append(b.notes, notes...)
	switch limit := b.in.PidsLimit; {
	case limit < 0:
		return invalid("pids limit", fmt.Sprint(limit), "is negative; use 0 for none")
	case limit > 0 && !b.in.Host.Controllers["pids"]:
		b.note("process limit %d left out: no pids cgroup controller", limit)
	case limit > 0:
		r.Pids = &rspec.LinuxPids{Limit: &limit}
	}
	b.spec.Linux.Resources = r
	return nil
}

// Resources makes the OCI resources of a config, or of a CRI update (UpdateContainerResources): a field that is not
// set there is nil or empty here and keeps its value. The strings are notes, as in Output.
func Resources(h Host, r *cri.LinuxContainerResources) (*rspec.LinuxResources, []string, error) {
	l := &cgroupLimits{host: h, from: r, to: &rspec.LinuxResources{}}
	for _, step := range []func() error{l.cpu, l.cpuset, l.memory, l.hugepages, l.unified} {
		if err := step(); err != nil {
			return nil, nil, err
		}
	}
	return l.to, l.notes, nil
}

// cgroupLimits translates one set of resources.
type cgroupLimits struct {
	host  Host
	from  *cri.LinuxContainerResources
	to    *rspec.LinuxResources
	notes []string
}

// usable tells whether a controller is there, and notes what is left out without it.
func (l *cgroupLimits) usable(controller, what string) bool {
	if l.host.Controllers[controller] {
		return true
	}
	l.notes = append(l.notes, fmt.Sprintf("%s left out: no %s cgroup controller", what, controller))
	return false
}

// cpu: the ranges are the kernel's (sched-bwc), in microseconds; -1 takes a quota away. Shares below 2 count as 2.
func (l *cgroupLimits) cpu() error {
	shares, quota, period := l.from.GetCpuShares(), l.from.GetCpuQuota(), l.from.GetCpuPeriod()
	switch {
	case shares < 0:
		return invalid("linux.resources.cpu_shares", fmt.Sprint(shares), "is negative; use 0 for the default, or 2 to 262144")
	case quota < -1 || quota > 0 && quota < 1000:
		return invalid("linux.resources.cpu_quota", fmt.Sprint(quota), "is out of range; use -1 for none, or 1000 microseconds and more")
	case period != 0 && (period < 1000 || period > 1000000):
		return invalid("linux.resources.cpu_period", fmt.Sprint(period), "is out of range; use 1000 to 1000000 microseconds")
	case shares == 0 && quota == 0 && period == 0, !l.usable("cpu", "CPU limits"):
		return nil
	}
	cpu := l.cpuPart()
	if shares != 0 {
		cpu.Shares = new(uint64(shares))
	}
	if quota != 0 {
		cpu.Quota = &quota
	}
	if period != 0 {
		cpu.Period = new(uint64(period))
	}
	return nil
}

func (l *cgroupLimits) cpuPart() *rspec.LinuxCPU {
	if l.to.CPU == nil {
		l.to.CPU = &rspec.LinuxCPU{}
	}
	return l.to.CPU
}

// cpuList is the kernel's list format, see cpuset(7).
var cpuList = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)

func (l *cgroupLimits) cpuset() error {
	cpus, mems := l.from.GetCpusetCpus(), l.from.GetCpusetMems()
	for _, f := range []struct{ field, value string }{{"cpuset_cpus", cpus}, {"cpuset_mems", mems}} {
		if f.value != "" && !cpuList.MatchString(f.value) {
			return invalid("linux.resources."+f.field, f.value, "is not a list of numbers and ranges; write it like 0-2,4")
		}
	}
	if cpus == "" && mems == "" || !l.usable("cpuset", "CPU set") {
		return nil
	}
	cpu := l.cpuPart()
	cpu.Cpus, cpu.Mems = cpus, mems
	return nil
}

// memory sets the limit, and the limit of memory and swap together, both in bytes. A container whose config says
// nothing of swap gets none: Kubernetes counts on it.
func (l *cgroupLimits) memory() error {
	limit, swap := l.from.GetMemoryLimitInBytes(), l.from.GetMemorySwapLimitInBytes()
	const swapField = "linux.resources.memory_swap_limit_in_bytes"
	switch {
	case limit < -1:
		return invalid("linux.resources.memory_limit_in_bytes", fmt.Sprint(limit), "is negative; use -1 for none")
	case swap < -1:
		return invalid(swapField, fmt.Sprint(swap), "is negative; use -1 for none")
	case swap > 0 && limit <= 0:
		return invalid(swapField, fmt.Sprint(swap), "there is no memory limit; set memory_limit_in_bytes too")
	case swap > 0 && swap < limit:
		return invalid(swapField, fmt.Sprint(swap), fmt.Sprintf("is memory and swap together and less than the memory limit %d; raise it", limit))
	case limit == 0 && swap == 0, !l.usable("memory", "memory limits"):
		return nil
	}
	l.to.Memory = &rspec.LinuxMemory{}
	if limit != 0 {
		l.to.Memory.Limit = &limit
	}
	switch {
	case l.host.SwapLimits && swap != 0:
		l.to.Memory.Swap = &swap
	case l.host.SwapLimits:
		l.to.Memory.Swap = new(limit)
	case swap != 0:
		l.notes = append(l.notes, fmt.Sprintf("memory and swap limit %d left out: the kernel does not count swap per cgroup", swap))
	}
	return nil
}

// pageSize is the CRI's format, which is also that of the kernel's file names.
var pageSize = regexp.MustCompile(`^[1-9][0-9]*[KMG]B$`)

func (l *cgroupLimits) hugepages() error {
	var sizes []string
	for i, h := range l.from.GetHugepageLimits() {
		field := fmt.Sprintf("linux.resources.hugepage_limits[%d].page_size", i)
		switch size := h.GetPageSize(); {
		case !pageSize.MatchString(size):
			return invalid(field, size, "is not a page size; write it like 2MB")
		case slices.Contains(sizes, size):
			return invalid(field, size, "is limited twice; keep one")
		}
		sizes = append(sizes, h.GetPageSize())
	}
	if len(sizes) == 0 || !l.usable("hugetlb", "hugepage limits") {
		return nil
	}
	for _, h := range l.from.GetHugepageLimits() {
		l.to.HugepageLimits = append(l.to.HugepageLimits, rspec.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return nil
}

// unified passes files of cgroup v2 through, by their names.
func (l *cgroupLimits) unified() error {
	for _, key := range slices.Sorted(maps.Keys(l.from.GetUnified())) {
		controller, _, dot := strings.Cut(key, ".")
		if !dot || strings.ContainsAny(key, "/\x00") {
			return invalid("linux.resources.unified", key, "is not a cgroup v2 file; name one like memory.high")
		}
		// cgroup.procs, .kill, .freeze and .subtree_control act on the container instead of limiting it.
		if controller == "cgroup" && !strings.HasPrefix(key, "cgroup.max.") {
			return invalid("linux.resources.unified", key, "is not a limit; remove it")
		}
		switch {
		case !l.host.CgroupV2:
			l.notes = append(l.notes, fmt.Sprintf("%s left out: this machine runs cgroup v1", key))
		case controller != "cgroup" && !l.usable(controller, key):
		case strings.HasPrefix(key, "memory.swap.") && !l.host.SwapLimits:
			l.notes = append(l.notes, fmt.Sprintf("%s left out: the kernel does not count swap per cgroup", key))
		default:
			if l.to.Unified == nil {
				l.to.Unified = map[string]string{}
			}
			l.to.Unified[key] = l.from.GetUnified()[key]
		}
	}
	return nil
}
