// Package volume finds the sources of a container's mounts and devices on the node.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/host"
	"github.com/orlop/orlop/server/label"
)

// ErrInvalid is for a mount or device that can't be had.
var ErrInvalid = errors.New("invalid mount")

// Sources says how to find them.
type Sources struct {
	// Image mounts the image of the mount with this index, and returns where.
	Image func(ctx context.Context, index int, m *cri.Mount) (path string, err error)
	// MountLabel is the container's, for mounts that ask to be relabelled.
	MountLabel string
}

// Mounts finds the source of each mount. A source on the node that is missing is made a directory, as the kubelet
// expects of a runtime. Images that were mounted before an error are the caller's to unmount.
func (s Sources) Mounts(ctx context.Context, mounts []*cri.Mount) ([]spec.Mount, error) {
	out := make([]spec.Mount, 0, len(mounts))
	for i, m := range mounts {
		source, err := s.source(ctx, i, m)
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] at %q: %w", i, m.GetContainerPath(), err)
		}
		out = append(out, spec.Mount{CRI: m, Source: source})
	}
	return out, nil
}

func (s Sources) source(ctx context.Context, index int, m *cri.Mount) (string, error) {
	if m.GetImage().GetImage() != "" {
		path, err := s.image(ctx, index, m)
		if err != nil {
			err = fmt.Errorf("%w: %w", crierrors.ErrImageVolumeMountFailed, err) // a word that clients look for
		}
		return path, err
	}
	source, err := hostPath(m.GetHostPath())
	if err != nil {
		return "", err
	}
	if err := checkPropagation(source, m.GetPropagation()); err != nil {
		return "", err
	}
	if m.GetSelinuxRelabel() {
		if err := label.Relabel(source, s.MountLabel, false); err != nil {
			return "", err
		}
	}
	return source, nil
}

func (s Sources) image(ctx context.Context, index int, m *cri.Mount) (string, error) {
	root, err := s.Image(ctx, index, m)
	if err != nil {
		return "", err
	}
	return below(root, m.GetImageSubPath())
}

// hostPath resolves links now, so that what is mounted is what was checked.
func hostPath(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%w: host_path %q is not absolute", ErrInvalid, path)
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", blame(err)
		}
		real, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", blame(err)
	}
	return real, nil
}

// blame says that the request is at fault where its path can't be one. A full, broken or read-only disk is the node's
// fault, and may work again with the same request.
func blame(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) && !slices.Contains([]unix.Errno{unix.ENOTDIR, unix.ENAMETOOLONG, unix.ELOOP, unix.EINVAL}, errno) {
		return fmt.Errorf("host_path: %w", err)
	}
	return fmt.Errorf("%w: host_path: %w", ErrInvalid, err)
}

// below finds a path in an image that is mounted at root, with the image's links kept inside of it. Nobody can change
// the image between this and the mount: it is read-only.
func below(root, sub string) (string, error) {
	if sub == "" {
		return root, nil
	}
	if filepath.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
		return "", fmt.Errorf("%w: image_sub_path %q must be relative and have no \"..\"", ErrInvalid, sub)
	}
	path, err := securejoin.SecureJoin(root, sub)
	if err == nil {
		_, err = os.Lstat(path)
	}
	if err != nil {
		return "", fmt.Errorf("%w: image_sub_path %q: %w", ErrInvalid, sub, err)
	}
	return path, nil
}

// checkPropagation refuses what the kernel would silently not do: mounts travel only within a peer group, or from a
// master to its slaves (mount_namespaces(7)).
func checkPropagation(source string, p cri.MountPropagation) error {
	var want []string
	switch p {
	case cri.MountPropagation_PROPAGATION_PRIVATE:
		return nil
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		want = []string{"shared:", "master:"}
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		want = []string{"shared:"}
	default:
		return fmt.Errorf("%w: propagation %v is unknown", ErrInvalid, p)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(source))
	if err != nil {
		return err
	}
	var at *mountinfo.Info // the one that source is on: the deepest, and the last of those
	for _, m := range mounts {
		if at == nil || len(m.Mountpoint) >= len(at.Mountpoint) {
			at = m
		}
	}
	if at == nil {
		return fmt.Errorf("%w: host_path %q is on no mount", ErrInvalid, source)
	}
	for field := range strings.FieldsSeq(at.Optional) {
		for _, prefix := range want {
			if strings.HasPrefix(field, prefix) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: propagation %v of %s: the mount %s is private; run mount --make-rshared %s on the node",
		ErrInvalid, p, source, at.Mountpoint, at.Mountpoint)
}

// Devices finds the nodes of each device. A directory stands for all devices below it.
func Devices(devices []*cri.Device) ([]spec.Device, error) {
	var out []spec.Device
	for i, d := range devices {
		nodes, err := host.DevicesAt(d.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("%w: devices[%d]: host_path %q: %w", ErrInvalid, i, d.GetHostPath(), err)
		}
		for _, n := range nodes {
			n.Path = filepath.Join(d.GetContainerPath(), strings.TrimPrefix(n.Path, d.GetHostPath()))
			out = append(out, spec.Device{Node: n, Permissions: d.GetPermissions()})
		}
	}
	return out, nil
}
