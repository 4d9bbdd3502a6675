package server

import (
	"context"
	"strings"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/host"
	"github.com/orlop/orlop/server/label"
	"github.com/orlop/orlop/server/podfiles"
	"github.com/orlop/orlop/server/seccomp"
	"github.com/orlop/orlop/server/user"
	"github.com/orlop/orlop/server/volume"
)

// machine is the [Lookup] of the machine that this runs on.
type machine struct{}

func (machine) MakePodFiles(ctx context.Context, f PodFiles) error {
	files := podfiles.Files{
		Dir: f.Dir, DNS: f.Config.GetDnsConfig(), Hostname: f.Hostname, HostNetwork: f.HostNetwork, HostIPC: f.HostIPC,
		ShmBytes: f.ShmBytes, ShmLabel: f.MountLabel,
	}
	var err error
	if files.FileLabel, err = label.Shared(f.MountLabel); err != nil { // a container may have a level of its own
		return err
	}
	for _, m := range f.UIDs {
		if m.ContainerID == 0 {
			files.UID = m.HostID
		}
	}
	for _, m := range f.GIDs {
		if m.ContainerID == 0 {
			files.GID = m.HostID
		}
	}
	return podfiles.Make(ctx, files)
}

func (machine) RemovePodFiles(ctx context.Context, dir string) error {
	return podfiles.Remove(ctx, dir)
}

func (machine) Container(ctx context.Context, in *spec.Input, images ImageMounter) (err error) {
	if in.User, err = user.Resolve(in.Rootfs, userRequest(in)); err != nil {
		return err
	}
	sources := volume.Sources{Image: images, MountLabel: in.MountLabel}
	if in.Mounts, err = sources.Mounts(ctx, in.Container.GetMounts()); err != nil {
		return err
	}
	if in.Devices, err = volume.Devices(in.Container.GetDevices()); err != nil {
		return err
	}
	if in.Container.GetLinux().GetSecurityContext().GetPrivileged() {
		if in.Host.Devices, err = host.Devices(); err != nil { // now: devices come and go
			return err
		}
	}
	if path := localhostSeccomp(in.Container); path != "" && in.LocalhostSeccomp == nil {
		in.LocalhostSeccomp, err = seccomp.Load(path)
	}
	return err
}

// localhostSeccomp is the profile file that a config names, "" for none.
func localhostSeccomp(config *cri.ContainerConfig) string {
	security := config.GetLinux().GetSecurityContext()
	if security.GetPrivileged() {
		return ""
	}
	if profile := security.GetSeccomp(); profile != nil {
		if profile.GetProfileType() == cri.SecurityProfile_Localhost {
			return profile.GetLocalhostRef()
		}
		return ""
	}
	path, _ := strings.CutPrefix(security.GetSeccompProfilePath(), "localhost/") //nolint:staticcheck // still sent by old clients
	if !strings.HasPrefix(path, "/") {
		return "" // runtime/default, unconfined, or nothing
	}
	return path
}

// useDefaultSeccomp puts the node's own profile in the place of the built-in one, where a container asks for the
// runtime's default.
func useDefaultSeccomp(in *spec.Input, profile []byte) {
	security := in.Container.GetLinux().GetSecurityContext()
	old := security.GetSeccompProfilePath() //nolint:staticcheck // still sent by old clients
	asked := security.GetSeccomp().GetProfileType() == cri.SecurityProfile_RuntimeDefault
	if security.GetSeccomp() == nil {
		asked = old == "runtime/default" || old == "docker/default"
	}
	if profile == nil || !asked {
		return
	}
	in.Container = proto.CloneOf(in.Container) // the one on record stays as the client sent it
	in.Container.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{
		ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/runtime/default",
	}
	in.LocalhostSeccomp = profile
}

// userRequest is what the config and the image say about the user.
func userRequest(in *spec.Input) user.Request {
	security := in.Container.GetLinux().GetSecurityContext()
	r := user.Request{
		Name: security.GetRunAsUsername(), Image: in.Image.User, Groups: security.GetSupplementalGroups(),
		Strict: security.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Strict,
	}
	if u := security.GetRunAsUser(); u != nil {
		r.UID = &u.Value
	}
	if g := security.GetRunAsGroup(); g != nil {
		r.GID = &g.Value
	}
	return r
}
