package stats

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/storage"
)

// Cgroups is what stats need of [cgroup.Host].
type Cgroups interface {
	Read(dir string) (*cgroup.Stats, error)
}

// Storage is what stats need of [storage.Store].
type Storage interface {
	RootfsUsage(ctx context.Context, id string) (storage.Usage, error)
}

// Container says what to measure. CgroupDir is "" for one that does not run: it has a writable layer only.
type Container struct {
	Attributes *cri.ContainerAttributes
	CgroupDir  string // see [cgroup.Host.Dir]
}

// Pod says what to measure. NetNS is the path of its network namespace, "" for the host's, whose interfaces are not
// the pod's.
type Pod struct {
	Attributes *cri.PodSandboxAttributes
	CgroupDir  string
	NetNS      string
	Containers []Container
}

// Meter is safe for concurrent use. It remembers the last CPU time of what it measured, for usage_nano_cores.
type Meter struct {
	cgroups    Cgroups
	storage    Storage
	mountpoint string
	sampler    sampler
}

// New makes a meter. mountpoint is where the file system of writable layers is (storage's root).
func New(cgroups Cgroups, st Storage, mountpoint string) *Meter {
	return &Meter{cgroups: cgroups, storage: st, mountpoint: mountpoint}
}

// Container measures one. What can't be read, because the kernel does not offer it or the container has just ended,
// is left out.
func (m *Meter) Container(ctx context.Context, c Container) *cri.ContainerStats {
	var written *disk
	if used, err := m.storage.RootfsUsage(ctx, c.Attributes.GetId()); err == nil {
		written = &disk{m.mountpoint, used, time.Now()}
	}
	return m.sampler.container(c.Attributes, m.read(c.CgroupDir), written)
}

// Pod measures a pod and its containers.
func (m *Meter) Pod(ctx context.Context, p Pod) *cri.PodSandboxStats {
	containers := make([]*cri.ContainerStats, len(p.Containers))
	for i, c := range p.Containers {
		containers[i] = m.Container(ctx, c)
	}
	var traffic *cri.NetworkUsage
	if p.NetNS != "" {
		if read, err := network(p.NetNS); err == nil {
			traffic = read
		}
	}
	return m.sampler.pod(p.Attributes, m.read(p.CgroupDir), traffic, containers)
}

// Forget drops what is kept for a container or pod that is gone.
func (m *Meter) Forget(id string) { m.sampler.forget(id) }

func (m *Meter) read(dir string) *cgroup.Stats {
	if dir == "" {
		return nil
	}
	used, err := m.cgroups.Read(dir)
	if err != nil {
		return nil
	}
	return used
}
