package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/csi"
	"github.com/orlop/orlop/kubelet/pod"
)

const csiKind = "csi"

// claim is the volume that a claim is bound to.
func (m *Manager) claim(ctx context.Context, p *v1.Pod, v *v1.Volume) (made, error) {
	name, readOnly := claimOf(p, v)
	claim, err := m.cfg.Objects.PersistentVolumeClaim(ctx, p.Namespace, name)
	if err != nil {
		return made{}, err
	}
	if err := usable(p, v, claim); err != nil {
		return made{}, err
	}
	pv, err := m.cfg.Objects.PersistentVolume(ctx, claim.Spec.VolumeName)
	if err != nil {
		return made{}, err
	}
	if ref := pv.Spec.ClaimRef; ref != nil && ref.UID != "" && ref.UID != claim.UID {
		return made{}, fmt.Errorf("PV %s: bound to another claim, %s/%s with UID %s", pv.Name, ref.Namespace, ref.Name, ref.UID)
	}
	isBlock := pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == v1.PersistentVolumeBlock
	if err := checkUse(p, v.Name, isBlock); err != nil {
		return made{}, err
	}
	done, err := m.bound(ctx, p, v.Name, csi.Volume{Pod: p, Name: pv.Name, PV: pv, Claim: name, ReadOnly: readOnly})
	done.readOnly, done.claim = readOnly, &stats.PVCReference{Name: name, Namespace: p.Namespace}
	if isBlock {
		done.device, done.path = done.path, ""
	}
	return done, err
}

// claimOf names the claim of a volume. That of an ephemeral one is made by the control plane for the pod.
func claimOf(p *v1.Pod, v *v1.Volume) (name string, readOnly bool) {
	if v.Ephemeral != nil {
		return ephemeral.VolumeClaimName(p, v), false
	}
	return v.PersistentVolumeClaim.ClaimName, v.PersistentVolumeClaim.ReadOnly
}

// usable refuses a claim that has no volume yet, that goes, or that is not the pod's own though it should be.
func usable(p *v1.Pod, v *v1.Volume, claim *v1.PersistentVolumeClaim) error {
	if v.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(p, claim); err != nil {
			return err
		}
	}
	if claim.DeletionTimestamp != nil && p.Status.Phase != v1.PodRunning {
		return fmt.Errorf("PVC %s/%s: is being deleted", claim.Namespace, claim.Name)
	}
	if claim.Spec.VolumeName == "" {
		return fmt.Errorf("PVC %s/%s: not bound to a volume yet", claim.Namespace, claim.Name)
	}
	return nil
}

// checkUse refuses a device that is used as a directory, and the other way round.
func checkUse(p *v1.Pod, name string, isBlock bool) error {
	for c := range pod.Containers(p) {
		for _, vm := range c.VolumeMounts {
			if vm.Name == name && isBlock {
				return fmt.Errorf("volume %s has volumeMode Block, but is specified in volumeMounts", name)
			}
		}
		for _, d := range c.VolumeDevices {
			if d.Name == name && !isBlock {
				return fmt.Errorf("volume %s has volumeMode Filesystem, but is specified in volumeDevices", name)
			}
		}
	}
	return nil
}

// bound is where a PersistentVolume is on this node.
func (m *Manager) bound(ctx context.Context, p *v1.Pod, name string, v csi.Volume) (made, error) {
	switch s := v.PV.Spec; {
	case s.HostPath != nil:
		at, err := m.hostPath(s.HostPath)
		if err != nil {
			return made{}, err
		}
		return at, os.MkdirAll(at.path, 0o755)
	case s.Local != nil:
		info, err := os.Stat(s.Local.Path)
		if err != nil {
			return made{}, fmt.Errorf("PV %s: local.path: %w", v.PV.Name, err)
		}
		if info.IsDir() && !v.ReadOnly {
			err = m.giveLocal(p, name, s.Local.Path)
		}
		return made{kind: localKind, path: s.Local.Path}, err
	case s.CSI != nil:
		return m.csi(ctx, v)
	}
	return made{}, &UnsupportedError{name, "persistentVolumeClaim of a PersistentVolume that is neither csi nor hostPath nor local"}
}

// giveLocal gives a local volume to the pod's fsGroup, once for each pod: when this process is started anew, files of a running
// pod stay as they are. The sign that it is done is the directory at which kubelet would mount the volume.
func (m *Manager) giveLocal(p *v1.Pod, name, path string) error {
	sign := m.dir(p.UID, localKind, name)
	if _, err := os.Stat(sign); err == nil {
		return nil
	}
	if err := setGroup(path, p, groupWrite); err != nil {
		return err
	}
	return os.MkdirAll(sign, 0o750)
}

// inline is a volume that a driver makes for this pod alone.
func (m *Manager) inline(ctx context.Context, p *v1.Pod, v *v1.Volume) (made, error) {
	return m.csi(ctx, csi.Volume{Pod: p, Name: v.Name, Inline: v.CSI, ReadOnly: v.CSI.ReadOnly != nil && *v.CSI.ReadOnly})
}

// csi has a volume's driver publish it.
func (m *Manager) csi(ctx context.Context, v csi.Volume) (made, error) {
	bits := os.FileMode(groupWrite)
	if v.ReadOnly {
		bits = groupRead
	}
	v.SetGroup = func(dir string) error { return setGroup(dir, v.Pod, bits) }
	path, err := m.cfg.CSI.Publish(ctx, v)
	if err != nil {
		return made{}, err
	}
	return made{kind: csiKind, path: path, name: v.Name, readOnly: v.ReadOnly, relabel: !v.ReadOnly && hasLabels(path)}, nil
}

// hasLabels tells whether files below a mount have SELinux labels of their own.
func hasLabels(path string) bool {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	return err == nil && len(mounts) > 0 && strings.Contains(mounts[0].VFSOptions, "seclabel")
}

// Devices are what a container is given: its volumeDevices. Setup must have made the pod's volumes.
func (m *Manager) Devices(p *v1.Pod, c *v1.Container) ([]*cri.Device, error) {
	var out []*cri.Device
	for _, d := range c.VolumeDevices {
		v, ok := m.get(p.UID, d.Name)
		if !ok || v.device == "" {
			return nil, fmt.Errorf("volumeDevices: %s: %w", d.Name, errors.New("the volume is not there yet"))
		}
		may := "mrw"
		if v.readOnly {
			may = "r"
		}
		out = append(out, &cri.Device{HostPath: v.device, ContainerPath: d.DevicePath, Permissions: may})
	}
	return out, nil
}
