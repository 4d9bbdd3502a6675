package stats

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	api "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
)

// pods measures all pods that the runtime has and that carry a pod's labels.
func (p *Provider) pods(ctx context.Context) ([]api.PodStats, error) {
	sandboxes, err := p.sandboxes(ctx)
	if err != nil {
		return nil, err
	}
	known := map[types.UID]*v1.Pod{}
	for _, k := range p.cfg.Pods() {
		known[pod.UID(k)] = k
	}
	all := make([]api.PodStats, 0, len(sandboxes)) // a list is never null
	for _, s := range sandboxes {
		uid := types.UID(s.GetAttributes().GetLabels()[runtime.PodUIDLabel])
		if uid != "" && s.Linux != nil {
			all = append(all, p.pod(s, uid, known[uid]))
		}
	}
	return all, nil
}

// sandboxes asks for the stats of pods with their containers. Where the runtime has only stats of containers, they are
// put together.
func (p *Provider) sandboxes(ctx context.Context) ([]*cri.PodSandboxStats, error) {
	reply, err := p.cfg.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
	if status.Code(err) != codes.Unimplemented {
		return reply.GetStats(), err
	}
	containers, err := p.cfg.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
	if err != nil {
		return nil, err
	}
	byPod := map[string]*cri.PodSandboxStats{}
	var all []*cri.PodSandboxStats
	for _, c := range containers.Stats {
		labels := c.GetAttributes().GetLabels()
		s := byPod[labels[runtime.PodUIDLabel]]
		if s == nil {
			s = &cri.PodSandboxStats{Linux: &cri.LinuxPodSandboxStats{}, Attributes: &cri.PodSandboxAttributes{Labels: labels}}
			byPod[labels[runtime.PodUIDLabel]] = s
			all = append(all, s)
		}
		s.Linux.Containers = append(s.Linux.Containers, c)
	}
	return all, nil
}

func (p *Provider) pod(s *cri.PodSandboxStats, uid types.UID, known *v1.Pod) api.PodStats {
	labels := s.Attributes.Labels
	out := api.PodStats{
		PodRef:     api.PodReference{Name: labels[runtime.PodNameLabel], Namespace: labels[runtime.PodNamespaceLabel], UID: string(uid)},
		Containers: []api.ContainerStats{},
		CPU:        p.cpu("pod "+string(uid), s.Linux.Cpu), Memory: memory(s.Linux.Memory),
		IO: io(s.Linux.Io), Network: network(s.Linux.Network),
	}
	if known != nil && known.Status.StartTime != nil {
		out.StartTime = *known.Status.StartTime
	}
	if s.Linux.Process != nil {
		out.ProcessStats = &api.ProcessStats{ProcessCount: value(s.Linux.Process.ProcessCount)}
	}
	logs := ""
	if p.cfg.PodLogs != "" {
		logs = filepath.Join(p.cfg.PodLogs, strings.Join([]string{out.PodRef.Namespace, out.PodRef.Name, out.PodRef.UID}, "_"))
	}
	for _, c := range s.Linux.Containers {
		out.Containers = append(out.Containers, p.container(c, logs, known))
	}
	sum(&out)
	if p.cfg.Volumes != nil {
		out.VolumeStats = p.cfg.Volumes(uid)
	}
	out.EphemeralStorage = ephemeral(&out, known)
	return out
}

func (p *Provider) container(c *cri.ContainerStats, logs string, known *v1.Pod) api.ContainerStats {
	name, id := c.GetAttributes().GetLabels()[runtime.ContainerNameLabel], c.GetAttributes().GetId()
	out := api.ContainerStats{
		Name: name, CPU: p.cpu("container "+id, c.Cpu), Memory: memory(c.Memory), IO: io(c.Io),
	}
	if c.Swap != nil {
		s := c.Swap
		out.Swap = &api.SwapStats{Time: at(s.Timestamp), SwapAvailableBytes: value(s.SwapAvailableBytes), SwapUsageBytes: value(s.SwapUsageBytes)}
	}
	if c.WritableLayer != nil {
		l := c.WritableLayer
		out.Rootfs = &api.FsStats{Time: at(l.Timestamp), UsedBytes: value(l.UsedBytes), InodesUsed: value(l.InodesUsed)}
	}
	if logs != "" {
		out.Logs = dirUsage(filepath.Join(logs, name))
	}
	if known != nil {
		cs := pod.ContainerStatus(&known.Status, name)
		if cs != nil && cs.State.Running != nil && strings.HasSuffix(cs.ContainerID, id) {
			out.StartTime = cs.State.Running.StartedAt
		}
	}
	return out
}

func at(nanoseconds int64) metav1.Time { return metav1.NewTime(time.Unix(0, nanoseconds)) }

func (p *Provider) cpu(key string, c *cri.CpuUsage) *api.CPUStats {
	if c == nil {
		return nil
	}
	out := &api.CPUStats{
		Time: at(c.Timestamp), UsageCoreNanoSeconds: value(c.UsageCoreNanoSeconds), UsageNanoCores: value(c.UsageNanoCores), PSI: psi(c.Psi),
	}
	if out.UsageNanoCores == nil && out.UsageCoreNanoSeconds != nil {
		out.UsageNanoCores = p.rates.perSecond(key, out.Time.Time, *out.UsageCoreNanoSeconds)
	}
	return out
}

func memory(m *cri.MemoryUsage) *api.MemoryStats {
	if m == nil {
		return nil
	}
	return &api.MemoryStats{
		Time: at(m.Timestamp), AvailableBytes: value(m.AvailableBytes), UsageBytes: value(m.UsageBytes),
		WorkingSetBytes: value(m.WorkingSetBytes), RSSBytes: value(m.RssBytes),
		PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults), PSI: psi(m.Psi),
	}
}

func io(u *cri.IoUsage) *api.IOStats {
	if u == nil {
		return nil
	}
	return &api.IOStats{Time: at(u.Timestamp), PSI: psi(u.Psi)}
}

func psi(p *cri.PsiStats) *api.PSIStats {
	if p == nil {
		return nil
	}
	data := func(d *cri.PsiData) api.PSIData {
		return api.PSIData{Total: d.GetTotal(), Avg10: d.GetAvg10(), Avg60: d.GetAvg60(), Avg300: d.GetAvg300()}
	}
	return &api.PSIStats{Full: data(p.Full), Some: data(p.Some)}
}

func network(n *cri.NetworkUsage) *api.NetworkStats {
	if n == nil {
		return nil
	}
	one := func(i *cri.NetworkInterfaceUsage) api.InterfaceStats {
		return api.InterfaceStats{
			Name: i.Name, RxBytes: value(i.RxBytes), RxErrors: value(i.RxErrors), TxBytes: value(i.TxBytes), TxErrors: value(i.TxErrors),
		}
	}
	out := &api.NetworkStats{Time: at(n.Timestamp)}
	if n.DefaultInterface != nil {
		out.InterfaceStats = one(n.DefaultInterface)
		out.Interfaces = append(out.Interfaces, out.InterfaceStats)
	}
	for _, i := range n.Interfaces {
		if i.Name != out.Name {
			out.Interfaces = append(out.Interfaces, one(i))
		}
	}
	return out
}

// sum fills in what the runtime does not measure of a pod as a whole.
func sum(p *api.PodStats) {
	withCPU, withMemory := p.CPU == nil, p.Memory == nil
	for _, c := range p.Containers {
		if withCPU && c.CPU != nil {
			if p.CPU == nil {
				p.CPU = &api.CPUStats{Time: c.CPU.Time}
			}
			p.CPU.UsageCoreNanoSeconds = plus(p.CPU.UsageCoreNanoSeconds, c.CPU.UsageCoreNanoSeconds)
			p.CPU.UsageNanoCores = plus(p.CPU.UsageNanoCores, c.CPU.UsageNanoCores)
		}
		if withMemory && c.Memory != nil {
			if p.Memory == nil {
				p.Memory = &api.MemoryStats{Time: c.Memory.Time}
			}
			p.Memory.UsageBytes = plus(p.Memory.UsageBytes, c.Memory.UsageBytes)
			p.Memory.WorkingSetBytes = plus(p.Memory.WorkingSetBytes, c.Memory.WorkingSetBytes)
			p.Memory.RSSBytes = plus(p.Memory.RSSBytes, c.Memory.RSSBytes)
		}
		if c.Swap != nil {
			if p.Swap == nil {
				p.Swap = &api.SwapStats{Time: c.Swap.Time}
			}
			p.Swap.SwapUsageBytes = plus(p.Swap.SwapUsageBytes, c.Swap.SwapUsageBytes)
			p.Swap.SwapAvailableBytes = plus(p.Swap.SwapAvailableBytes, c.Swap.SwapAvailableBytes)
		}
	}
}

// plus is nil if nothing was measured.
func plus(a, b *uint64) *uint64 {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return new(*a + *b)
}

// ephemeral is what counts against a pod's limit of ephemeral storage: writable layers, logs, and volumes on the
// node's disk.
func ephemeral(p *api.PodStats, known *v1.Pod) *api.FsStats {
	out := &api.FsStats{Time: metav1.Now()}
	for _, c := range p.Containers {
		for _, fs := range []*api.FsStats{c.Rootfs, c.Logs} {
			if fs != nil {
				out.UsedBytes, out.InodesUsed = plus(out.UsedBytes, fs.UsedBytes), plus(out.InodesUsed, fs.InodesUsed)
			}
		}
	}
	for _, v := range p.VolumeStats {
		if onNodeDisk(known, v.Name) {
			out.UsedBytes, out.InodesUsed = plus(out.UsedBytes, v.UsedBytes), plus(out.InodesUsed, v.InodesUsed)
		}
	}
	return out
}

func onNodeDisk(p *v1.Pod, volume string) bool {
	if p == nil {
		return false
	}
	for _, v := range p.Spec.Volumes {
		if v.Name == volume {
			return v.ConfigMap != nil || (v.EmptyDir != nil && v.EmptyDir.Medium == v1.StorageMediumDefault)
		}
	}
	return false
}

// dirUsage counts the files of a container's logs, which lie in one directory without others.
func dirUsage(dir string) *api.FsStats {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // no log yet
	}
	var bytes, inodes uint64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			bytes += uint64(info.Size())
			inodes++
		}
	}
	return &api.FsStats{Time: metav1.Now(), UsedBytes: &bytes, InodesUsed: &inodes}
}
