package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/mount"
)

// Unpublish takes all volumes from a pod that has ended, whoever gave them to it, and those that no pod has any more from the
// node. It succeeds if there are none.
func (m *Manager) Unpublish(ctx context.Context, uid types.UID) error {
	m.endCare(uid)
	volumes := filepath.Join(m.cfg.Root, "pods", string(uid), "volumes", pluginName)
	entries, err := os.ReadDir(volumes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, m.unpublishMount(ctx, place{uid, e.Name()}))
	}
	errs = append(errs, m.unpublishDevices(ctx, uid))
	err = errors.Join(errs...)
	m.awaits(uid, err)
	return err
}

func (m *Manager) unpublishMount(ctx context.Context, p place) error {
	dir := m.volumeDir(p)
	rec, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // what else may be there is not a driver's
	}
	if err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, string(rec.id().unique()))
	if err != nil {
		return err
	}
	defer unlock()
	if rec.State != wanted {
		if err := m.callUnpublish(ctx, rec.id(), filepath.Join(dir, mountName)); err != nil {
			return err
		}
	}
	if err := drop(dir); err != nil {
		return err
	}
	return m.release(ctx, rec)
}

// callUnpublish has the driver take a volume from where it published it. A driver that does not know the volume, and has
// nothing there, has nothing to do.
func (m *Manager) callUnpublish(ctx context.Context, v volumeID, target string) error {
	d, err := m.driver(v.driver)
	if err != nil {
		return err
	}
	err = d.call(ctx, "NodeUnpublishVolume", func(ctx context.Context, c csi.NodeClient) error {
		_, err := c.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.handle, TargetPath: target})
		return err
	})
	return m.settle(err, target)
}

// settle judges an answer to a request to undo something at a place. The driver removes the place itself; some don't.
func (m *Manager) settle(err error, path string) error {
	if err != nil && !missing(err) {
		return err
	}
	mounted, mountErr := mount.Mounted(path)
	switch {
	case mountErr != nil:
		return errors.Join(err, mountErr)
	case mounted && err != nil:
		return err
	case mounted: // more than once: the next attempt takes the next one
		return fmt.Errorf("%s is mounted yet, though the driver says that it is not", path)
	}
	return removeUnmounted(path)
}

// release takes a volume from this node if no pod has it any more. The volume's lock must be held.
func (m *Manager) release(ctx context.Context, rec record) error {
	users, err := m.users(rec.id())
	if err != nil || len(users) > 0 {
		return err
	}
	if err := m.unstage(ctx, rec.id()); err != nil {
		return err
	}
	if rec.Name != "" {
		if err := m.unstageDevice(ctx, rec); err != nil {
			return err
		}
	}
	m.unuse(rec.id())
	return nil
}

// unuse says that a volume may be detached.
func (m *Manager) unuse(v volumeID) {
	m.mu.Lock()
	known := m.inUse[v]
	delete(m.inUse, v)
	m.mu.Unlock()
	if known {
		m.cfg.InUseChanged()
	}
}

// unstage undoes stage. It succeeds if the volume is not staged.
func (m *Manager) unstage(ctx context.Context, v volumeID) error {
	dir := m.stageDir(v)
	if _, err := load(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := m.callUnstage(ctx, v, filepath.Join(dir, globalMountName)); err != nil {
		return err
	}
	return drop(dir)
}

func (m *Manager) callUnstage(ctx context.Context, v volumeID, path string) error {
	d, err := m.driver(v.driver)
	if err != nil {
		return err
	}
	stages, err := d.can(ctx, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
	if err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.staged, v)
	m.mu.Unlock()
	if !stages { // an earlier version of it may have
		return m.settle(nil, path)
	}
	err = d.call(ctx, "NodeUnstageVolume", func(ctx context.Context, c csi.NodeClient) error {
		_, err := c.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.handle, StagingTargetPath: path})
		return err
	})
	return m.settle(err, path)
}

// Sweep takes volumes from this node that no pod has: this process was ended between two steps.
func (m *Manager) Sweep(ctx context.Context) error {
	staged := map[volumeID]record{}
	err := m.eachRecord(func(dir string, r record) {
		if strings.HasPrefix(dir, m.stageRoot()+"/") {
			staged[r.id()] = r
		}
	})
	errs := []error{err}
	for v, rec := range staged {
		errs = append(errs, m.sweepOne(ctx, v, rec))
	}
	return errors.Join(errs...)
}

func (m *Manager) sweepOne(ctx context.Context, v volumeID, rec record) error {
	unlock, err := m.locks.lock(ctx, string(v.unique()))
	if err != nil {
		return err
	}
	defer unlock()
	return m.release(ctx, rec)
}
