package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/apimachinery/pkg/types"
)

// Volumes with volumeMode Block are devices. Their places are others: the record is one for all pods, and what a pod has is a
// link, which is there before anything is done for it, and so is the pod's record.
//
//	plugins/kubernetes.io/csi/volumeDevices/PV/data/vol_data.json
//	plugins/kubernetes.io/csi/volumeDevices/staging/PV
//	plugins/kubernetes.io/csi/volumeDevices/publish/PV/POD ◀── pods/POD/volumeDevices/kubernetes.io~csi/PV

func (m *Manager) deviceRoot() string { return filepath.Join(m.stageRoot(), "volumeDevices") }

// deviceDir holds the record of a device.
func (m *Manager) deviceDir(pv string) string { return filepath.Join(m.deviceRoot(), pv, "data") }

func (m *Manager) deviceStage(pv string) string {
	return filepath.Join(m.deviceRoot(), "staging", pv)
}

func (m *Manager) devicePath(p place) string {
	return filepath.Join(m.deviceRoot(), "publish", p.name, string(p.uid))
}

func (m *Manager) podDevices(uid types.UID) string {
	return filepath.Join(m.cfg.Root, "pods", string(uid), "volumeDevices", pluginName)
}

func (m *Manager) publishDevice(ctx context.Context, r *request) (path string, err error) {
	link, target := filepath.Join(m.podDevices(r.Pod.UID), r.Name), m.devicePath(r.place())
	if isDevice(link) {
		return link, nil
	}
	metadata, err := m.intendDevice(ctx, r, link)
	if err != nil {
		return r.failed(setUpDevice, err)
	}
	d, unlock, err := m.begin(ctx, r)
	if err != nil {
		return r.failed(setUpDevice, err)
	}
	defer unlock()
	stage, err := m.stage(ctx, d, r, metadata)
	if err != nil {
		return r.failed(setUpDevice, err)
	}
	p := publication{driver: d, request: r, metadata: metadata, stage: stage, target: target}
	if err := m.makeDevice(ctx, p); err != nil {
		return r.failed(mapPodDevice, err)
	}
	return link, nil
}

// makeDevice has the driver make a device at the target. The volume's lock must be held.
func (m *Manager) makeDevice(ctx context.Context, p publication) error {
	ask, err := m.publishRequest(ctx, p)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.target), 0o750); err != nil {
		return err
	}
	if err := m.askDevice(ctx, p.driver, ask, m.deviceDir(p.Name)); err != nil {
		return err
	}
	if !isDevice(p.target) {
		return fmt.Errorf("driver %s: NodePublishVolume: it made no block device at %s", p.driver.name, p.target)
	}
	return nil
}

// askDevice asks the driver, and writes into the record in dir that it was asked. One that has staged the device was so before.
func (m *Manager) askDevice(ctx context.Context, d *driver, ask *csi.NodePublishVolumeRequest, dir string) error {
	rec, err := load(dir)
	if err != nil {
		return err
	}
	if rec.State != wanted {
		return d.publish(ctx, ask)
	}
	first := rec
	rec.State = asked
	if err := rec.save(dir); err != nil {
		return err
	}
	if err = d.publish(ctx, ask); refused(err) {
		return errors.Join(err, first.save(dir))
	}
	return err
}

// isDevice tells whether a path leads to a block device.
func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
}

// intendDevice writes down that a device is wanted, and waits until it is attached.
func (m *Manager) intendDevice(ctx context.Context, r *request, link string) (metadata map[string]string, err error) {
	m.use(r)
	unlock, err := m.locks.lock(ctx, string(r.unique()))
	if err != nil {
		return nil, err
	}
	err = m.recordDevice(r, link)
	unlock()
	if err != nil {
		return nil, err
	}
	return m.attached(ctx, r)
}

func (m *Manager) recordDevice(r *request, link string) error {
	dir := m.deviceDir(r.Name)
	switch rec, err := load(dir); {
	case errors.Is(err, fs.ErrNotExist):
		if err := m.newRecord(r).save(dir); err != nil {
			return err
		}
	case err != nil:
		return err
	case rec.id() != r.volumeID:
		return fmt.Errorf("%s is of another volume, %s of driver %s", dir, rec.Handle, rec.Driver)
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o750); err != nil {
		return err
	}
	if err := os.Symlink(m.devicePath(r.place()), link); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// deviceUsers adds the pods that have a link to a device, as users has them.
func (m *Manager) deviceUsers(v volumeID, to map[types.UID]bool) error {
	links, err := filepath.Glob(filepath.Join(m.podDevices("*"), "*"))
	if err != nil {
		return err
	}
	for _, link := range links {
		r, err := load(m.deviceDir(filepath.Base(link)))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if r.id() == v {
			to[podOf(link)] = isDevice(link)
		}
	}
	return nil
}

func (m *Manager) unpublishDevices(ctx context.Context, uid types.UID) error {
	entries, err := os.ReadDir(m.podDevices(uid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, m.unpublishDevice(ctx, place{uid, e.Name()}))
	}
	return errors.Join(errs...)
}

func (m *Manager) unpublishDevice(ctx context.Context, p place) error {
	link := filepath.Join(m.podDevices(p.uid), p.name)
	rec, err := load(m.deviceDir(p.name))
	if errors.Is(err, fs.ErrNotExist) { // nothing was done for it
		return os.Remove(link)
	}
	if err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, string(rec.id().unique()))
	if err != nil {
		return err
	}
	defer unlock()
	if rec.State != wanted || isDevice(link) {
		if err := m.callUnpublish(ctx, rec.id(), m.devicePath(p)); err != nil {
			return err
		}
	}
	if err := os.Remove(link); err != nil {
		return err
	}
	return m.release(ctx, rec)
}

// unstageDevice undoes stage for a device, and removes its record with the directories around it.
func (m *Manager) unstageDevice(ctx context.Context, of record) error {
	pv := of.Name
	dir := m.deviceDir(pv)
	rec, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && rec.id() != of.id()) {
		return nil
	}
	if err != nil {
		return err
	}
	if rec.State != wanted {
		if err := m.callUnstage(ctx, rec.id(), m.deviceStage(pv)); err != nil {
			return err
		}
	}
	if err := drop(dir); err != nil {
		return err
	}
	var errs []error
	for _, empty := range []string{filepath.Join(m.deviceRoot(), "publish", pv), filepath.Join(m.deviceRoot(), pv, "dev"), filepath.Dir(dir)} {
		if err := os.Remove(empty); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
