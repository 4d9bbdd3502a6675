package server

import (
	"context"
	"os"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/podfiles"
)

// Lookup finds on this machine what a spec depends on, and makes the files of a pod.
type Lookup interface {
	// MakePodFiles may be repeated.
	MakePodFiles(ctx context.Context, f PodFiles) error
	// RemovePodFiles succeeds if there is nothing.
	RemovePodFiles(ctx context.Context, dir string) error
	// Container fills in the user, labels, mounts, devices and profile that in.Container asks for.
	Container(ctx context.Context, in *spec.Input, images ImageMounter) error
}

// ImageMounter mounts the image of the mount with this index, and returns where.
type ImageMounter func(ctx context.Context, index int, m *cri.Mount) (path string, err error)

// PodFiles are the files that the containers of a pod share.
type PodFiles struct {
	Dir      string // where they are made
	Config   *cri.PodSandboxConfig
	Hostname string
	// HostNetwork: names are the node's to resolve. HostIPC: /dev/shm is the host's.
	HostNetwork, HostIPC bool

	ShmBytes   int64 // of /dev/shm
	MountLabel string
	UIDs, GIDs []ns.IDMap // of the pod's user namespace, whose root owns the files
}

func (p *pod) files() PodFiles {
	rec := p.rec.Load()
	return PodFiles{
		Dir: p.dir, Config: rec.Config, Hostname: p.hostname(),
		HostNetwork: p.want.hostNetwork, HostIPC: p.want.hostIPC, ShmBytes: p.want.shmBytes,
		MountLabel: rec.MountLabel, UIDs: p.want.uids, GIDs: p.want.gids,
	}
}

// hostname is the one that the pod's processes see: the node's, where they share its network.
func (p *pod) hostname() string {
	if p.want.hostname != "" {
		return p.want.hostname
	}
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}

// fill tells a container's spec where the files are. A mount of the request covers the one at its place.
func (f PodFiles) fill(in *spec.Input) {
	in.HostnamePath, in.ResolvConfPath = podfiles.Hostname(f.Dir), podfiles.Resolv(f.Dir)
	in.HostsPath, in.ShmPath = podfiles.Hosts(f.Dir), podfiles.Shm(f.Dir)
	if f.HostIPC {
		in.ShmPath = "/dev/shm"
	}
}
