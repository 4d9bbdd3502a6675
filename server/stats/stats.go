// Package stats measures containers and pods: what their cgroups, their network namespaces and the storage say, as
// CRI has it.
package stats

import (
	"context"

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
	cgroups Cgroups
	storage Storage
}

// New makes a meter. MountPoint is where the file system of writable layers is (storage's root).
func New(cgroups Cgroups, st Storage, mountPoint string) *Meter { panic("filled in next") }

// Container measures one. What can't be read, because the kernel does not offer it or the container has just ended,
// is left out.
func (m *Meter) Container(ctx context.Context, c Container) *cri.ContainerStats { panic("filled in next") }

// Pod measures a pod and its containers.
func (m *Meter) Pod(ctx context.Context, p Pod) *cri.PodSandboxStats { panic("filled in next") }
