package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/env"
	"github.com/orlop/orlop/kubelet/mount"
)

// subPaths is where in a pod's directory parts of volumes are mounted.
const subPaths = "volume-subpaths"

// Mounts are what a container is shown: its volumeMounts. variable finds the container's environment variables, for
// subPathExpr. Setup must have made the pod's volumes.
func (m *Manager) Mounts(p *v1.Pod, c *v1.Container, variable func(name string) (string, bool)) ([]*cri.Mount, error) {
	var out []*cri.Mount
	for i := range c.VolumeMounts {
		mount, err := m.mountOf(p, c, i, variable)
		if err != nil {
			return nil, fmt.Errorf("volumeMounts: %s: %w", c.VolumeMounts[i].Name, err)
		}
		out = append(out, mount)
	}
	return out, nil
}

func (m *Manager) mountOf(p *v1.Pod, c *v1.Container, index int, variable func(name string) (string, bool)) (*cri.Mount, error) {
	vm := &c.VolumeMounts[index]
	v, ok := m.get(p.UID, vm.Name)
	if !ok || v.device != "" {
		return nil, errors.New("the volume is not there yet")
	}
	path := vm.MountPath
	if !filepath.IsAbs(path) {
		path = filepath.Join("/", path)
	}
	sub, err := subPath(vm, variable)
	if err != nil {
		return nil, err
	}
	if v.image != "" {
		return &cri.Mount{ContainerPath: path, Image: &cri.ImageSpec{Image: v.image}, ImageSubPath: sub, Readonly: true}, nil
	}
	host := v.path
	if sub != "" {
		if host, err = m.bindSubPath(subPathOf{pod: p, container: c.Name, index: index, volume: v, name: vm.Name}, sub); err != nil {
			return nil, fmt.Errorf("subPath %q: %w", sub, err)
		}
	}
	mount := &cri.Mount{
		ContainerPath: path, HostPath: host, Readonly: vm.ReadOnly || v.readOnly, SelinuxRelabel: v.relabel, Propagation: propagation(vm),
	}
	mount.RecursiveReadOnly, err = m.recursive(p, vm)
	return mount, err
}

func propagation(vm *v1.VolumeMount) cri.MountPropagation {
	if vm.MountPropagation != nil {
		switch *vm.MountPropagation {
		case v1.MountPropagationHostToContainer:
			return cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case v1.MountPropagationBidirectional:
			return cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
	}
	return cri.MountPropagation_PROPAGATION_PRIVATE
}

// recursive tells whether all mounts below are to be read-only too (KEP-3857).
func (m *Manager) recursive(p *v1.Pod, vm *v1.VolumeMount) (bool, error) {
	if vm.RecursiveReadOnly == nil || *vm.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled || !vm.ReadOnly {
		return false, nil
	}
	can := m.cfg.RecursiveReadOnly(p.Spec.RuntimeClassName)
	if !can && *vm.RecursiveReadOnly == v1.RecursiveReadOnlyEnabled {
		return false, errors.New("recursiveReadOnly: Enabled, and the runtime handler has no recursive read-only mounts; write IfPossible")
	}
	return can, nil
}

// subPath is the part of the volume that is mounted; "" for all of it.
func subPath(vm *v1.VolumeMount, variable func(name string) (string, bool)) (string, error) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		missing := ""
		sub = env.Expand(vm.SubPathExpr, func(name string) (string, bool) {
			value, ok := variable(name)
			if !ok {
				missing = name
			}
			return value, ok
		})
		if missing != "" {
			return "", fmt.Errorf("subPathExpr %q: the container has no variable %s", vm.SubPathExpr, missing)
		}
	}
	if sub != "" && !filepath.IsLocal(sub) {
		return "", fmt.Errorf("subPath %q: must be a relative path that does not leave the volume", sub)
	}
	return sub, nil
}

// subPathOf is one mount of a part of a volume.
type subPathOf struct {
	pod       *v1.Pod
	container string
	index     int // of the mount in its container
	volume    made
	name      string // of the volume
}

// bindSubPath mounts a part of a volume at a place of its own, and returns that. The container may have put symbolic links
// into the volume and may change them at any time, so the part is opened once, without ever leaving the volume, and what
// was opened is what is mounted.
func (m *Manager) bindSubPath(s subPathOf, sub string) (string, error) {
	root, err := os.OpenRoot(s.volume.path)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if err := makeSubPath(root, sub, s.volume); err != nil {
		return "", err
	}
	dir, err := root.Open(".")
	if err != nil {
		return "", err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), sub, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return m.bind(s, fd)
}

// makeSubPath makes a directory that is missing, with the mode and owner that the volume has.
func makeSubPath(root *os.Root, sub string, v made) error {
	if _, err := root.Stat(sub); !errors.Is(err, fs.ErrNotExist) || v.readOnly {
		return err
	}
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	if err := root.MkdirAll(sub, 0o750); err != nil {
		return err
	}
	if st := ownerOf(info); st.gid != 0 || st.uid != 0 {
		if err := root.Chown(sub, st.uid, st.gid); err != nil {
			return err
		}
	}
	return root.Chmod(sub, info.Mode().Perm()|info.Mode()&(fs.ModeSetgid|fs.ModeSticky))
}

func (m *Manager) bind(s subPathOf, fd int) (string, error) {
	target := filepath.Join(m.podDir(s.pod.UID), subPaths, s.name, s.container, fmt.Sprint(s.index))
	if mounted, err := mount.Mounted(target); err != nil {
		return "", err
	} else if mounted { // of an earlier start: what it shows may be gone by now
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
			return "", err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if err := makeTarget(target, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind: %w", err)
	}
	return target, nil
}

// makeTarget makes what a mount is put on: a directory for a directory, and a file for all else.
func makeTarget(target string, dir bool) error {
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if dir {
		return os.MkdirAll(target, 0o750)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}
