package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/kubelet/mount"
)

// StepError is a step towards a volume that failed. Its text is that of kubelet's events.
type StepError struct {
	Step   string // "MountVolume.SetUp", …
	Volume string
	Err    error
}

func (e *StepError) Error() string {
	return fmt.Sprintf("%s failed for volume %q : %v", e.Step, e.Volume, e.Err)
}

// Reason is that of the event which tells it.
func (e *StepError) Reason() string {
	if e.Step == setUpDevice || e.Step == mapPodDevice {
		return "FailedMapVolume"
	}
	return "FailedMount"
}

// Unwrap is what went wrong.
func (e *StepError) Unwrap() error { return e.Err }

// Steps, by kubelet's names.
const (
	waitForAttach = "MountVolume.WaitForAttach"
	mountDevice   = "MountVolume.MountDevice"
	setUp         = "MountVolume.SetUp"
	setUpDevice   = "MapVolume.SetUpDevice"
	mapPodDevice  = "MapVolume.MapPodDevice"
)

// Publish makes a volume a directory of the node, or a device if it has volumeMode Block, and returns its path. A volume that
// is there already stays as it is, also if this process was not the one that made it.
func (m *Manager) Publish(ctx context.Context, v Volume) (path string, err error) {
	r, err := m.request(ctx, v)
	if err != nil {
		return "", &StepError{setUp, v.Name, err}
	}
	if r.block {
		path, err = m.publishDevice(ctx, r)
	} else {
		path, err = m.publishMount(ctx, r)
	}
	if err != nil {
		m.awaits(v.Pod.UID, err)
		return "", err
	}
	m.beginCare(r, path)
	return path, nil
}

func (m *Manager) publishMount(ctx context.Context, r *request) (path string, err error) {
	dir := m.volumeDir(r.place())
	path = filepath.Join(dir, mountName)
	if m.isPublished(dir, path, r.volumeID) {
		return path, nil
	}
	rec, err := m.intend(r, dir)
	if err != nil {
		return r.failed(setUp, err)
	}
	metadata, err := m.attached(ctx, r)
	if err != nil {
		return r.failed(waitForAttach, err)
	}
	d, unlock, err := m.begin(ctx, r)
	if err != nil {
		return r.failed(mountDevice, err)
	}
	defer unlock()
	stage, err := m.stage(ctx, d, r, metadata)
	if err != nil {
		return r.failed(mountDevice, err)
	}
	p := publication{driver: d, request: r, metadata: metadata, stage: stage, target: path}
	if err := m.firstPublish(ctx, p, dir, rec); err != nil {
		return r.failed(setUp, err)
	}
	return path, nil
}

// failed is what becomes of a step that failed. An inline volume has only one.
func (r *request) failed(step string, err error) (string, error) {
	if r.Inline != nil {
		step = setUp
	}
	return "", &StepError{step, r.Name, err}
}

// begin takes a volume's lock, and finds its driver.
func (m *Manager) begin(ctx context.Context, r *request) (d *driver, unlock func(), err error) {
	if unlock, err = m.locks.lock(ctx, string(r.unique())); err != nil {
		return nil, nil, err
	}
	m.use(r) // the last pod before this one may have left it meanwhile
	if d, err = m.driver(r.driver); err == nil {
		err = m.alone(r)
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return d, unlock, nil
}

// isPublished tells whether a volume is where it should be, with all that belongs to it. After the machine has started
// anew the record is there, and the mount is not.
func (m *Manager) isPublished(dir, path string, v volumeID) bool {
	r, err := load(dir)
	if err != nil || r.State != done || r.id() != v {
		return false
	}
	mounted, err := mount.Mounted(path)
	return err == nil && mounted
}

// intend writes down that a volume is wanted, before anything is done for it: it is in use from now on.
func (m *Manager) intend(r *request, dir string) (record, error) {
	rec, err := load(dir)
	switch {
	case err == nil && rec.id() == r.volumeID:
		m.use(r)
		return rec, nil
	case err == nil:
		return rec, fmt.Errorf("%s is of another volume, %s of driver %s", dir, rec.Handle, rec.Driver)
	case !errors.Is(err, fs.ErrNotExist):
		return rec, err
	}
	rec = m.newRecord(r)
	if err := rec.save(dir); err != nil {
		return rec, err
	}
	m.use(r)
	return rec, nil
}

func (m *Manager) newRecord(r *request) record {
	rec := record{
		Name: r.Name, Handle: r.handle, Driver: r.driver, Node: m.cfg.Name, Lifecycle: r.lifecycle,
		Attachment: attachmentName(r.volumeID, m.cfg.Name), State: wanted, Attach: no,
	}
	if r.attach && r.Inline == nil {
		rec.Attach = yes
	}
	return rec
}

// use adds a volume that is attached to those in use.
func (m *Manager) use(r *request) {
	if !r.attach || r.Inline != nil {
		return
	}
	m.mu.Lock()
	known := m.inUse[r.volumeID]
	m.inUse[r.volumeID] = true
	m.mu.Unlock()
	if !known {
		m.cfg.InUseChanged()
	}
}

// attached waits until the control plane has attached a volume, and returns what its driver said of that.
func (m *Manager) attached(ctx context.Context, r *request) (metadata map[string]string, err error) {
	if !r.attach || r.Inline != nil {
		return nil, nil
	}
	limited, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	if err := m.cfg.Node.WaitAttached(limited, r.unique()); err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			return nil, fmt.Errorf("timed out waiting for external-attacher of %s CSI driver to attach volume %s", r.driver, r.handle)
		}
		return nil, err
	}
	name := attachmentName(r.volumeID, m.cfg.Name)
	a, err := m.cfg.Client.Attachments.All().Get(limited, name, metav1.GetOptions{})
	switch {
	case err != nil:
		return nil, fmt.Errorf("volume attachment %s: %w", name, err)
	case a.DeletionTimestamp != nil:
		return nil, fmt.Errorf("volume attachment %s is being deleted", name)
	case !a.Status.Attached && a.Status.AttachError != nil:
		return nil, errors.New(a.Status.AttachError.Message)
	case !a.Status.Attached:
		return nil, fmt.Errorf("volume attachment %s is not attached", name)
	}
	return a.Status.AttachmentMetadata, nil
}

// alone refuses a volume that only one pod may have, and that another one has.
func (m *Manager) alone(r *request) error {
	if r.Inline != nil || !slices.Contains(r.modes, v1.ReadWriteOncePod) {
		return nil
	}
	users, err := m.users(r.volumeID)
	if err != nil {
		return err
	}
	for uid, has := range users {
		if has && uid != r.Pod.UID {
			return fmt.Errorf("volume uses the ReadWriteOncePod access mode and is already in use by another pod, %s", uid)
		}
	}
	return nil
}

// stage has the driver bring a volume to this node, once for all pods, if it works in this way. It returns the place; "" if
// there is none. The volume's lock must be held.
func (m *Manager) stage(ctx context.Context, d *driver, r *request, metadata map[string]string) (string, error) {
	if r.Inline != nil {
		return "", nil
	}
	stages, err := d.can(ctx, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
	if err != nil || !stages {
		return "", err
	}
	dir := m.stageDir(r.volumeID)
	path := filepath.Join(dir, globalMountName)
	if r.block {
		dir, path = m.deviceDir(r.Name), m.deviceStage(r.Name)
	}
	m.mu.Lock()
	before := m.staged[r.volumeID]
	m.mu.Unlock()
	if before || m.isPublished(dir, path, r.volumeID) {
		return path, nil
	}
	ask, err := m.stageRequest(ctx, d, r, metadata)
	if err != nil {
		return "", err
	}
	ask.StagingTargetPath = path
	if err := m.firstStage(ctx, d, ask, dir, m.newRecord(r)); err != nil {
		return "", err
	}
	m.mu.Lock()
	m.staged[r.volumeID] = true
	m.mu.Unlock()
	return path, nil
}

func (m *Manager) stageRequest(ctx context.Context, d *driver, r *request, metadata map[string]string) (*csi.NodeStageVolumeRequest, error) {
	secrets, err := m.secret(ctx, r.stageSecret)
	if err != nil {
		return nil, err
	}
	capability, err := d.capability(ctx, r)
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeRequest{
		VolumeId: r.handle, PublishContext: metadata, VolumeCapability: capability, Secrets: secrets, VolumeContext: r.attributes,
	}, nil
}

// firstStage asks the driver, and writes down in dir how far it comes.
func (m *Manager) firstStage(ctx context.Context, d *driver, ask *csi.NodeStageVolumeRequest, dir string, rec record) error {
	old, err := load(dir)
	fresh := errors.Is(err, fs.ErrNotExist) || (err == nil && old.State == wanted)
	rec.State = asked
	if err := errors.Join(os.MkdirAll(ask.StagingTargetPath, 0o750), rec.save(dir)); err != nil {
		return err
	}
	err = d.call(ctx, "NodeStageVolume", func(ctx context.Context, c csi.NodeClient) error {
		_, err := c.NodeStageVolume(ctx, ask)
		return err
	})
	switch {
	case err == nil:
		rec.State = done
		return rec.save(dir)
	case !refused(err) || !fresh: // an earlier attempt may have left something
		return err
	case old.State == wanted:
		return errors.Join(err, removeUnmounted(ask.StagingTargetPath), old.save(dir))
	}
	return errors.Join(err, removeUnmounted(ask.StagingTargetPath), drop(dir))
}

// capability says how a volume is to be used.
func (d *driver) capability(ctx context.Context, r *request) (*csi.VolumeCapability, error) {
	mode, err := d.accessMode(ctx, r.modes)
	if err != nil {
		return nil, err
	}
	if r.block {
		return &csi.VolumeCapability{AccessMode: mode, AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}}, nil
	}
	mount := &csi.VolumeCapability_MountVolume{FsType: r.fsType, MountFlags: r.options}
	groups, err := d.can(ctx, csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP)
	if err != nil {
		return nil, err
	}
	if group := r.group(); groups && group != nil {
		mount.VolumeMountGroup = strconv.FormatInt(*group, 10)
	}
	return &csi.VolumeCapability{AccessMode: mode, AccessType: &csi.VolumeCapability_Mount{Mount: mount}}, nil
}

// publication is a volume on its way to a pod.
type publication struct {
	*driver
	*request
	metadata map[string]string // of the attachment
	stage    string            // where it is staged; "" if it is not
	target   string            // where it is to be
}

// firstPublish shows a volume to a pod, and writes down how far it comes. The volume's lock must be held.
func (m *Manager) firstPublish(ctx context.Context, p publication, dir string, rec record) error {
	ask, err := m.publishRequest(ctx, p)
	if err != nil {
		return err
	}
	fresh := rec.State == wanted
	rec.State = asked
	if err := rec.save(dir); err != nil {
		return err
	}
	if err := p.publish(ctx, ask); err != nil {
		if refused(err) && fresh { // else an earlier attempt may have left something
			rec.State = wanted
			return errors.Join(err, removeUnmounted(p.target), rec.save(dir))
		}
		return err
	}
	byDriver, err := p.can(ctx, csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP)
	if err != nil {
		return err
	}
	if !byDriver && p.ownsFiles() {
		if err := p.SetGroup(p.target); err != nil {
			return err
		}
	}
	rec.State = done
	return rec.save(dir)
}

func (m *Manager) publishRequest(ctx context.Context, p publication) (*csi.NodePublishVolumeRequest, error) {
	attributes, secrets, err := m.publishWith(ctx, p.request)
	if err != nil {
		return nil, err
	}
	capability, err := p.capability(ctx, p.request)
	if err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeRequest{
		VolumeId: p.handle, PublishContext: p.metadata, StagingTargetPath: p.stage, TargetPath: p.target,
		VolumeCapability: capability, Readonly: p.ReadOnly, Secrets: secrets, VolumeContext: attributes,
	}, nil
}

func (d *driver) publish(ctx context.Context, ask *csi.NodePublishVolumeRequest) error {
	return d.call(ctx, "NodePublishVolume", func(ctx context.Context, c csi.NodeClient) error {
		_, err := c.NodePublishVolume(ctx, ask)
		return err
	})
}

// removeUnmounted removes what a driver made for a mount that it then did not make.
func removeUnmounted(path string) error {
	mounted, err := mount.Mounted(path)
	if err != nil || mounted {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
