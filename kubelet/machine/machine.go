// Package machine reads what a node is and has: processors, memory, huge pages, disks, and the names of its system.
package machine

import (
	"bufio"
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Facts are what does not change while the machine runs.
type Facts struct {
	CPUs      int
	Memory    int64           // bytes
	Swap      int64           // bytes
	HugePages map[int64]int64 // how many by their size in bytes
	Disk      int64           // bytes of the file system of the kubelet's root directory
	Info      v1.NodeSystemInfo
}

// Read reads the facts. rootDir is the kubelet's root directory, which must exist.
func Read(rootDir string) (Facts, error) {
	f := Facts{CPUs: runtime.NumCPU(), HugePages: map[int64]int64{}}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return f, fmt.Errorf("memory: %w", err)
	}
	info := MemInfo(string(data))
	f.Memory, f.Swap = info["MemTotal"], info["SwapTotal"]
	if err := f.readHugePages(); err != nil {
		return f, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(rootDir, &fs); err != nil {
		return f, fmt.Errorf("disk of %s: %w", rootDir, err)
	}
	f.Disk = int64(fs.Blocks) * fs.Bsize
	f.Info, err = systemInfo()
	return f, err
}

// MemInfo reads /proc/meminfo, see proc_meminfo(5): sizes in bytes, counts as they are.
func MemInfo(data string) map[string]int64 {
	out := map[string]int64{}
	for line := range strings.Lines(data) {
		name, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		n, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			continue
		}
		if len(fields) > 1 && fields[1] == "kB" {
			n *= 1024
		}
		out[name] = n
	}
	return out
}

const hugePagesDir = "/sys/kernel/mm/hugepages"

func (f *Facts) readHugePages() error {
	dirs, err := filepath.Glob(filepath.Join(hugePagesDir, "hugepages-*kB"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		var kilobytes, count int64
		if _, err := fmt.Sscanf(filepath.Base(dir), "hugepages-%dkB", &kilobytes); err != nil {
			return fmt.Errorf("huge pages: %s: %w", dir, err)
		}
		data, err := os.ReadFile(filepath.Join(dir, "nr_hugepages"))
		if err != nil {
			return fmt.Errorf("huge pages: %w", err)
		}
		if count, err = strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err != nil {
			return fmt.Errorf("huge pages: %w", err)
		}
		f.HugePages[kilobytes*1024] = count
	}
	return nil
}

// systemInfo names the system. What a machine does not have, such as a firmware's UUID, stays empty.
func systemInfo() (v1.NodeSystemInfo, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return v1.NodeSystemInfo{}, fmt.Errorf("uname: %w", err)
	}
	inUserNS := userns.RunningInUserNS()
	machineID := cmp.Or(first("/etc/machine-id"), first("/var/lib/dbus/machine-id"))
	return v1.NodeSystemInfo{
		MachineID:       machineID,
		SystemUUID:      cmp.Or(strings.ToLower(first("/sys/class/dmi/id/product_uuid")), machineID),
		BootID:          first("/proc/sys/kernel/random/boot_id"),
		KernelVersion:   unix.ByteSliceToString(name.Release[:]),
		OSImage:         osName(),
		OperatingSystem: runtime.GOOS,
		Architecture:    runtime.GOARCH,

		RunningInUserNamespace: &inUserNS,
	}, nil
}

func first(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(line)
}

// osName is PRETTY_NAME, see os-release(5).
func osName() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return "Linux"
}

// Capacity is what the node has, as its status lists it.
func (f Facts) Capacity(maxPods, podsPerCPU int64) v1.ResourceList {
	pods := maxPods
	if podsPerCPU > 0 {
		pods = min(pods, podsPerCPU*int64(f.CPUs))
	}
	list := v1.ResourceList{
		v1.ResourceCPU:              *resource.NewQuantity(int64(f.CPUs), resource.DecimalSI),
		v1.ResourceMemory:           *resource.NewQuantity(f.Memory, resource.BinarySI),
		v1.ResourceEphemeralStorage: *resource.NewQuantity(f.Disk, resource.BinarySI),
		v1.ResourcePods:             *resource.NewQuantity(pods, resource.DecimalSI),
	}
	for size, count := range f.HugePages {
		name := v1.ResourceName(v1.ResourceHugePagesPrefix + resource.NewQuantity(size, resource.BinarySI).String())
		list[name] = *resource.NewQuantity(size*count, resource.BinarySI)
	}
	return list
}

// Allocatable is what of the capacity is left for pods when the reservations are taken off, and the memory that must stay
// free. Huge pages are taken off memory, as the kernel does (KEP-1539).
func Allocatable(capacity v1.ResourceList, reserved ...v1.ResourceList) v1.ResourceList {
	out := v1.ResourceList{}
	for name, q := range capacity {
		left := q.DeepCopy()
		for _, list := range reserved {
			if r, ok := list[name]; ok {
				left.Sub(r)
			}
		}
		if left.Sign() < 0 {
			left.Set(0)
		}
		out[name] = left
	}
	memory := out[v1.ResourceMemory]
	for name, q := range capacity {
		if strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) {
			memory.Sub(q)
		}
	}
	if memory.Sign() < 0 {
		memory.Set(0)
	}
	out[v1.ResourceMemory] = memory
	return out
}

// ParseIPs reads the addresses that a node is configured to have: none, one, or one of each family with a comma between.
func ParseIPs(list string) ([]net.IP, error) {
	if list == "" {
		return nil, nil
	}
	var out []net.IP
	for text := range strings.SplitSeq(list, ",") {
		ip := net.ParseIP(strings.TrimSpace(text))
		if ip == nil {
			return nil, fmt.Errorf("%q is not an IP address", text)
		}
		out = append(out, ip)
	}
	is4 := func(ip net.IP) bool { return ip.To4() != nil }
	switch {
	case len(out) == 1:
	case len(out) > 2 || is4(out[0]) == is4(out[1]):
		return nil, fmt.Errorf("%q must be one address, or one of each family", list)
	case out[0].IsUnspecified() || out[1].IsUnspecified():
		return nil, fmt.Errorf("%q: of two addresses, neither may be unspecified (0.0.0.0, ::)", list)
	}
	return out, nil
}

// Addresses are the node's: those that were configured, or else the one that its default route goes out by, or else the
// first that is not loopback.
func Addresses(configured []net.IP) ([]net.IP, error) {
	if len(configured) > 0 && !configured[0].IsUnspecified() {
		return configured, nil
	}
	if conn, err := net.Dial("udp4", "192.0.2.1:9"); err == nil { // a route is looked up; nothing is sent
		defer conn.Close()
		if a, ok := conn.LocalAddr().(*net.UDPAddr); ok && !a.IP.IsLoopback() {
			return []net.IP{a.IP}, nil
		}
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of the node: %w", err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return []net.IP{n.IP}, nil
		}
	}
	return []net.IP{net.IPv4(127, 0, 0, 1)}, nil
}
