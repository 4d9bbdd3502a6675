package stats

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	api "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// cgroup measures a cgroup of either version, by its path below the cgroup mount.
func (p *Provider) cgroup(path string) (*api.CPUStats, *api.MemoryStats, *api.SwapStats, error) {
	now := metav1.Now()
	u, err := p.read(path)
	if err != nil {
		return nil, nil, nil, err
	}
	working := u.working()
	cpu := &api.CPUStats{Time: now, UsageCoreNanoSeconds: &u.cpu, UsageNanoCores: p.rates.perSecond("cgroup "+path, now.Time, u.cpu)}
	memory := &api.MemoryStats{Time: now, UsageBytes: &u.memory, WorkingSetBytes: &working,
		RSSBytes: &u.rss, PageFaults: &u.faults, MajorPageFaults: &u.majorFaults}
	meminfo, err := p.meminfo()
	if err != nil {
		return cpu, memory, nil, err
	}
	if limit := min(u.limit, meminfo["MemTotal"]); limit < meminfo["MemTotal"] || path == "/" {
		memory.AvailableBytes = new(limit - min(limit, working))
	}
	swap := &api.SwapStats{Time: now, SwapUsageBytes: &u.swap}
	if path == "/" {
		*swap.SwapUsageBytes = meminfo["SwapTotal"] - min(meminfo["SwapTotal"], meminfo["SwapFree"])
		swap.SwapAvailableBytes = new(meminfo["SwapFree"])
	}
	return cpu, memory, swap, nil
}

// usage is what a cgroup says of itself.
type usage struct {
	cpu                                    uint64 // nanoseconds
	memory, limit, inactiveFile, rss, swap uint64 // bytes
	faults, majorFaults                    uint64
}

// working is the memory that can't be had back without writing to a disk.
func (u usage) working() uint64 { return u.memory - min(u.memory, u.inactiveFile) }

func (p *Provider) read(path string) (u usage, err error) {
	if _, statErr := os.Stat(filepath.Join(p.cfg.Cgroups, "cgroup.controllers")); statErr == nil {
		u, err = p.readV2(path)
	} else {
		u, err = p.readV1(path)
	}
	if err != nil {
		return u, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return u, nil
}

func (p *Provider) readV1(path string) (u usage, err error) {
	memory := filepath.Join(p.cfg.Cgroups, "memory", path)
	stat, err := keys(filepath.Join(memory, "memory.stat"))
	if err != nil {
		return usage{}, err
	}
	u = usage{
		inactiveFile: stat["total_inactive_file"], rss: stat["total_rss"], swap: stat["total_swap"],
		faults: stat["total_pgfault"], majorFaults: stat["total_pgmajfault"], limit: stat["hierarchical_memory_limit"],
	}
	var errCPU, errMemory error
	u.cpu, errCPU = number(filepath.Join(p.cfg.Cgroups, "cpuacct", path, "cpuacct.usage"))
	u.memory, errMemory = number(filepath.Join(memory, "memory.usage_in_bytes"))
	return u, errors.Join(errCPU, errMemory)
}

// readV2: the root has neither memory.current nor memory.max, so the node's usage is taken from /proc/meminfo.
func (p *Provider) readV2(path string) (u usage, err error) {
	dir := filepath.Join(p.cfg.Cgroups, path)
	cpu, err := keys(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return usage{}, err
	}
	stat, err := keys(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return usage{}, err
	}
	u = usage{
		cpu: cpu["usage_usec"] * 1000, inactiveFile: stat["inactive_file"], rss: stat["anon"],
		faults: stat["pgfault"], majorFaults: stat["pgmajfault"], limit: ^uint64(0),
	}
	u.memory, err = number(filepath.Join(dir, "memory.current"))
	if errors.Is(err, os.ErrNotExist) {
		meminfo, err := p.meminfo()
		u.memory = meminfo["MemTotal"] - min(meminfo["MemTotal"], meminfo["MemFree"])
		return u, err
	}
	if err != nil {
		return usage{}, err
	}
	if limit, err := number(filepath.Join(dir, "memory.max")); err == nil { // "max" is no number
		u.limit = limit
	}
	if swap, err := number(filepath.Join(dir, "memory.swap.current")); err == nil { // not there without swap
		u.swap = swap
	}
	return u, nil
}

// meminfo is in bytes.
func (p *Provider) meminfo() (map[string]uint64, error) {
	all, err := keys(filepath.Join(p.cfg.Proc, "meminfo"))
	for key := range all {
		all[key] <<= 10 // they are in KiB
	}
	return all, err
}

// keys reads a file of lines "KEY VALUE" or "KEY: VALUE UNIT".
func keys(path string) (map[string]uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			all[strings.TrimSuffix(f[0], ":")] = n
		}
	}
	return all, nil
}

func number(path string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// fsStats measures the file system on which path lies.
func fsStats(path string) (*api.FsStats, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	size := uint64(st.Frsize)
	return &api.FsStats{
		Time:           metav1.Now(),
		AvailableBytes: new(st.Bavail * size),
		CapacityBytes:  new(st.Blocks * size),
		UsedBytes:      new((st.Blocks - st.Bfree) * size),
		InodesFree:     new(st.Ffree),
		Inodes:         new(st.Files),
		InodesUsed:     new(st.Files - st.Ffree),
	}, nil
}

// rlimit counts tasks: all of them take from the same numbers.
func (p *Provider) rlimit() (*api.RlimitStats, error) {
	most, err := number(filepath.Join(p.cfg.Proc, "sys/kernel/pid_max"))
	if err != nil {
		return nil, err
	}
	if threads, err := number(filepath.Join(p.cfg.Proc, "sys/kernel/threads-max")); err == nil {
		most = min(most, threads)
	}
	load, err := os.ReadFile(filepath.Join(p.cfg.Proc, "loadavg")) // "0.1 0.2 0.3 RUNNING/ALL LAST"
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(load))
	if len(fields) < 4 {
		return nil, fmt.Errorf("%s/loadavg: %q has no fourth field", p.cfg.Proc, load)
	}
	_, all, _ := strings.Cut(fields[3], "/")
	running, err := strconv.ParseInt(all, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%s/loadavg: %w", p.cfg.Proc, err)
	}
	return &api.RlimitStats{Time: metav1.NewTime(time.Now()), MaxPID: new(int64(most)), NumOfRunningProcesses: &running}, nil
}

// network are the interfaces of the node, and at the top the one with the default route.
func (p *Provider) network() (*api.NetworkStats, error) {
	f, err := os.Open(filepath.Join(p.cfg.Proc, "self/net/dev"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n := &api.NetworkStats{Time: metav1.Now()}
	main := p.defaultInterface()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, counters, ok := strings.Cut(lines.Text(), ":")
		c := strings.Fields(counters)
		if name = strings.TrimSpace(name); !ok || len(c) < 11 || name == "lo" {
			continue
		}
		i := api.InterfaceStats{Name: name, RxBytes: parsed(c[0]), RxErrors: parsed(c[2]), TxBytes: parsed(c[8]), TxErrors: parsed(c[10])}
		n.Interfaces = append(n.Interfaces, i)
		if name == main {
			n.InterfaceStats = i
		}
	}
	return n, lines.Err()
}

func parsed(s string) *uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

// defaultInterface is "" for a node without a default route of IPv4.
func (p *Provider) defaultInterface() string {
	text, err := os.ReadFile(filepath.Join(p.cfg.Proc, "self/net/route"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			return f[0]
		}
	}
	return ""
}
