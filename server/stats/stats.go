// Package stats says in the CRI's words what containers and pods use.
package stats

import (
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/storage"
)

// disk is what a container wrote, and where.
type disk struct {
	mountpoint string
	used       storage.Usage
	at         time.Time
}

// container makes the stats of one container. used may be nil: it has ended, and has no cgroup any more.
func (s *sampler) container(attributes *cri.ContainerAttributes, used *cgroup.Stats, written *disk) *cri.ContainerStats {
	out := &cri.ContainerStats{Attributes: attributes}
	if written != nil {
		out.WritableLayer = &cri.FilesystemUsage{
			Timestamp:  written.at.UnixNano(),
			FsId:       &cri.FilesystemIdentifier{Mountpoint: written.mountpoint},
			UsedBytes:  number(written.used.Bytes),
			InodesUsed: number(written.used.Inodes),
		}
	}
	if used == nil {
		return out
	}
	at := used.Time.UnixNano()
	out.Cpu, out.Memory, out.Io = s.cpu(attributes.GetId(), used), memory(used), io(used)
	if used.Swap != nil {
		out.Swap = &cri.SwapUsage{Timestamp: at, SwapUsageBytes: number(used.Swap.UsageBytes)}
		if used.Swap.AvailableBytes > 0 {
			out.Swap.SwapAvailableBytes = number(used.Swap.AvailableBytes)
		}
	}
	return out
}

// pod makes the stats of one pod, as far as they are known: used and network may be nil.
func (s *sampler) pod(attributes *cri.PodSandboxAttributes, used *cgroup.Stats, network *cri.NetworkUsage, containers []*cri.ContainerStats) *cri.PodSandboxStats {
	linux := &cri.LinuxPodSandboxStats{Network: network, Containers: containers}
	if used != nil {
		linux.Cpu, linux.Memory, linux.Io = s.cpu(attributes.GetId(), used), memory(used), io(used)
		linux.Process = &cri.ProcessUsage{Timestamp: used.Time.UnixNano(), ProcessCount: number(used.Processes)}
	}
	return &cri.PodSandboxStats{Attributes: attributes, Linux: linux}
}

func (s *sampler) cpu(id string, used *cgroup.Stats) *cri.CpuUsage {
	if used.CPU == nil {
		return nil
	}
	out := &cri.CpuUsage{
		Timestamp: used.Time.UnixNano(), UsageCoreNanoSeconds: number(used.CPU.UsageNanos), Psi: psi(used.CPU.PSI),
	}
	if rate, ok := s.nanoCores(id, used.Time, used.CPU.UsageNanos); ok {
		out.UsageNanoCores = number(rate)
	}
	return out
}

func memory(used *cgroup.Stats) *cri.MemoryUsage {
	m := used.Memory
	if m == nil {
		return nil
	}
	out := &cri.MemoryUsage{
		Timestamp:       used.Time.UnixNano(),
		WorkingSetBytes: number(m.WorkingSetBytes),
		UsageBytes:      number(m.UsageBytes),
		RssBytes:        number(m.RSSBytes),
		PageFaults:      number(m.PageFaults),
		MajorPageFaults: number(m.MajorPageFaults),
		Psi:             psi(m.PSI),
	}
	if m.LimitBytes > 0 { // without a limit nothing can be said, and 0 would say that all is used up
		out.AvailableBytes = number(m.AvailableBytes)
	}
	return out
}

func io(used *cgroup.Stats) *cri.IoUsage {
	if used.IO == nil {
		return nil
	}
	return &cri.IoUsage{Timestamp: used.Time.UnixNano(), Psi: psi(used.IO.PSI)}
}

// psi turns the kernel's microseconds into the CRI's nanoseconds.
func psi(p *cgroup.PSI) *cri.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l cgroup.PSILine) *cri.PsiData {
		return &cri.PsiData{
			Total: l.TotalMicros * uint64(time.Microsecond), Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300,
		}
	}
	return &cri.PsiStats{Some: line(p.Some), Full: line(p.Full)}
}

func number(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }
