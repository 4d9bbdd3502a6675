// Package cgroup keeps the tree of cgroups that gives pods their share of the node:
//
//	ROOT/kubepods                      what pods may use together: the node's allocatable
//	ROOT/kubepods/podUID               Guaranteed pods
//	ROOT/kubepods/burstable/podUID     Burstable pods, which get what they ask for
//	ROOT/kubepods/besteffort/podUID    BestEffort pods, which get what is left
//
// With systemd each is a slice. The names are kubelet's, since monitoring reads them. The runtime makes the containers'
// cgroups below their pod's.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/resource"
)

// Names of the parts of the tree.
const (
	podsName  = "kubepods"
	podPrefix = "pod"
	mount     = "/sys/fs/cgroup"
)

// Config is what the tree hangs from.
type Config struct {
	Root     string // below the cgroup mount, "/" by default; it must exist if it is another one
	Systemd  bool   // the driver is systemd, not cgroupfs
	Disabled bool   // cgroupsPerQOS is false: pods get no cgroups of their own
	PodPids  int64  // processes of one pod; 0 for no limit
}

// Manager makes, changes and removes cgroups. Its methods may run side by side for different pods.
type Manager struct{ cfg Config }

// New checks the configuration.
func New(cfg Config) (*Manager, error) {
	cfg.Root = path.Clean("/" + cfg.Root)
	if cfg.Root != "/" && !cfg.Disabled && !exists(cfg.Root) {
		return nil, fmt.Errorf("cgroupRoot %q: no such cgroup; make it, or leave cgroupRoot empty", cfg.Root)
	}
	return &Manager{cfg: cfg}, nil
}

// V2 is true where the kernel has the unified hierarchy alone.
func V2() bool { return cgroups.IsCgroup2UnifiedMode() }

func exists(name string) bool {
	for _, dir := range dirs(name) {
		if _, err := os.Stat(dir); err == nil {
			return true
		}
	}
	return false
}

// dirs are the directories that a cgroup has, if it is there: one, or on v1 one for each hierarchy.
func dirs(name string) []string {
	if V2() {
		return []string{filepath.Join(mount, name)}
	}
	var out []string
	for _, controller := range []string{"memory", "cpu", "pids"} { // where one that we make is sure to be
		out = append(out, filepath.Join(mount, controller, name))
	}
	return out
}

// Start makes the cgroups of all pods and of the classes, and limits all pods to what the node can give them.
func (m *Manager) Start(allocatable v1.ResourceList) error {
	if m.cfg.Disabled {
		return nil
	}
	all := resource.Pod{
		Shares: resource.Shares(allocatable.Cpu().MilliValue()),
		Memory: allocatable.Memory().Value(),
	}
	if err := m.set(m.class(v1.PodQOSGuaranteed), all, 0); err != nil {
		return err
	}
	for _, class := range []v1.PodQOSClass{v1.PodQOSBurstable, v1.PodQOSBestEffort} {
		if err := m.set(m.class(class), resource.Pod{Shares: resource.Shares(0)}, 0); err != nil {
			return err
		}
	}
	return nil
}

// SetBurstable gives the cgroup of all Burstable pods its CPU shares.
func (m *Manager) SetBurstable(shares int64) error {
	if m.cfg.Disabled {
		return nil
	}
	return m.set(m.class(v1.PodQOSBurstable), resource.Pod{Shares: shares}, 0)
}

// class is the path of a class's cgroup below the mount, in names of cgroupfs.
func (m *Manager) class(class v1.PodQOSClass) string {
	name := path.Join(m.cfg.Root, podsName)
	if class == v1.PodQOSGuaranteed {
		return name
	}
	return path.Join(name, strings.ToLower(string(class)))
}

func (m *Manager) pod(uid types.UID, class v1.PodQOSClass) string {
	return path.Join(m.class(class), podPrefix+string(uid))
}

// Parent is what the runtime is told to put a pod's containers below: a path, or with systemd a slice.
func (m *Manager) Parent(p *v1.Pod) string {
	if m.cfg.Disabled {
		return m.cfg.Root
	}
	name := m.pod(p.UID, pod.QoS(p))
	if m.cfg.Systemd {
		return slice(name)
	}
	return name
}

// Path is where a pod's cgroup is below the cgroup mount (on v1: below each hierarchy's).
func (m *Manager) Path(p *v1.Pod) string {
	return m.fsName(m.pod(p.UID, pod.QoS(p)))
}

// PodsPath is where the cgroup of all pods is below the cgroup mount; "" if there is none.
func (m *Manager) PodsPath() string {
	if m.cfg.Disabled {
		return ""
	}
	return m.fsName(m.class(v1.PodQOSGuaranteed))
}

// Ensure makes a pod's cgroup or changes what it gives.
func (m *Manager) Ensure(p *v1.Pod, give resource.Pod) error {
	if m.cfg.Disabled {
		return nil
	}
	return m.set(m.pod(p.UID, pod.QoS(p)), give, m.cfg.PodPids)
}

// Remove ends what still runs in a pod's cgroup and removes it, whatever its class. It succeeds if there is none.
func (m *Manager) Remove(uid types.UID) error {
	if m.cfg.Disabled {
		return nil
	}
	var errs []error
	for _, class := range []v1.PodQOSClass{v1.PodQOSGuaranteed, v1.PodQOSBurstable, v1.PodQOSBestEffort} {
		name := m.pod(uid, class)
		if !exists(m.fsName(name)) {
			continue
		}
		err := errors.Join(m.empty(name), m.destroy(name))
		if err != nil {
			errs = append(errs, fmt.Errorf("cgroup %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) destroy(name string) error {
	cg, err := manager.New(m.cgroup(name, nil))
	if err != nil {
		return err
	}
	return cg.Destroy()
}

// endTime is how long killed processes get to be gone.
const endTime = 5 * time.Second

// empty kills what is in a cgroup and below, and waits until it has ended: the runtime has stopped all containers by now, so
// this is for what somebody else has put there.
func (m *Manager) empty(name string) error {
	limit := time.Now().Add(endTime)
	var errs []error
	for _, dir := range dirs(m.fsName(name)) {
		pids, err := cgroups.GetAllPids(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, pid := range pids {
			errs = append(errs, kill(pid, limit))
		}
	}
	return errors.Join(errs...)
}

// kill ends a process, known by a descriptor, so that its number can't come to mean another.
func kill(pid int, limit time.Time) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil { // it has ended
		return nil
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	for {
		left := int(time.Until(limit).Milliseconds())
		if left <= 0 {
			return fmt.Errorf("process %d was killed, and does not end", pid)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, left)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
}

// Pods are the UIDs of all pods that have a cgroup.
func (m *Manager) Pods() ([]types.UID, error) {
	if m.cfg.Disabled {
		return nil, nil
	}
	var uids []types.UID
	for _, class := range []v1.PodQOSClass{v1.PodQOSGuaranteed, v1.PodQOSBurstable, v1.PodQOSBestEffort} {
		entries, err := os.ReadDir(dirs(m.fsName(m.class(class)))[0])
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cgroups of pods: %w", err)
		}
		for _, e := range entries {
			if uid, ok := m.uid(e.Name()); ok && e.IsDir() {
				uids = append(uids, uid)
			}
		}
	}
	return uids, nil
}

// uid reads a pod's UID from the name of its cgroup's directory.
func (m *Manager) uid(name string) (types.UID, bool) {
	if m.cfg.Systemd {
		name, ok := strings.CutSuffix(name, ".slice")
		if !ok {
			return "", false
		}
		_, uid, ok := strings.Cut(name[strings.LastIndex(name, "-")+1:], podPrefix)
		return types.UID(strings.ReplaceAll(uid, "_", "-")), ok
	}
	uid, ok := strings.CutPrefix(name, podPrefix)
	return types.UID(uid), ok
}

func (m *Manager) fsName(name string) string {
	if m.cfg.Systemd {
		return expand(slice(name))
	}
	return name
}

// set makes a cgroup, without a process in it, and writes what it gives.
func (m *Manager) set(name string, give resource.Pod, pids int64) error {
	cg, err := manager.New(m.cgroup(name, resources(give, pids)))
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", name, err)
	}
	if err := cg.Apply(-1); err != nil {
		return fmt.Errorf("cgroup %s: make: %w", name, err)
	}
	if err := cg.Set(resources(give, pids)); err != nil {
		return fmt.Errorf("cgroup %s: set: %w", name, err)
	}
	return nil
}

func (m *Manager) cgroup(name string, r *cgroups.Resources) *cgroups.Cgroup {
	if r == nil {
		r = &cgroups.Resources{SkipDevices: true}
	}
	if !m.cfg.Systemd {
		return &cgroups.Cgroup{Path: name, Resources: r}
	}
	unit := slice(name)
	parent := "-.slice"
	if i := strings.LastIndex(unit, "-"); i > 0 {
		parent = unit[:i] + ".slice"
	}
	return &cgroups.Cgroup{Name: unit, Parent: parent, Systemd: true, Resources: r}
}

// resources writes 0 as "no limit": what was limited before must not stay so.
func resources(give resource.Pod, pids int64) *cgroups.Resources {
	r := &cgroups.Resources{SkipDevices: true, SkipFreezeOnSet: true, CpuShares: uint64(give.Shares), CpuPeriod: 100_000, CpuQuota: -1, Memory: -1}
	if V2() {
		r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(r.CpuShares)
	}
	if give.Quota > 0 {
		r.CpuQuota = give.Quota
	}
	if give.Memory > 0 {
		r.Memory = give.Memory
	}
	if pids > 0 {
		r.PidsLimit = &pids
	}
	for _, h := range give.Huge {
		if supported(h) {
			r.HugetlbLimit = append(r.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
		}
	}
	return r
}

// supported: the library refuses limits of pages whose controller is not there.
func supported(h *cri.HugepageLimit) bool {
	if V2() {
		controllers, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
		return err == nil && strings.Contains(string(controllers), "hugetlb")
	}
	_, err := os.Stat(filepath.Join(mount, "hugetlb", "hugetlb."+h.PageSize+".limit_in_bytes"))
	return err == nil
}

// slice names the systemd slice of a cgroup: /kubepods/burstable/pod1-2 is kubepods-burstable-pod1_2.slice, where "-"
// separates parts and so can't be in one (systemd.slice(5)).
func slice(name string) string {
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], "-", "_")
	}
	return strings.Join(parts, "-") + ".slice"
}

// expand is the path of a slice: each "-" of its name is a parent.
func expand(unit string) string {
	name, dir := strings.TrimSuffix(unit, ".slice"), "/"
	for i := range name {
		if name[i] == '-' {
			dir = path.Join(dir, name[:i]+".slice")
		}
	}
	return path.Join(dir, unit)
}
