package csi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// careEvery is how often a published volume is looked at: how full it is, whether it has grown, and whether its driver wants
// to publish it again, for new tokens.
const careEvery = time.Minute

// care is what is done for one published volume of a pod.
type care struct {
	request *request
	path    string
	busy    bool           // somebody is at it: a driver may hang
	old     bool           // it was looked at before
	stats   *stats.FsStats // nil if the driver does not tell
}

// beginCare looks after a volume from now on.
func (m *Manager) beginCare(r *request, path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cared[r.place()] == nil {
		m.cared[r.place()] = &care{request: r, path: path}
		select {
		case m.begun <- struct{}{}:
		default: // it will look anyhow
		}
	}
}

// endCare forgets a pod that ends.
func (m *Manager) endCare(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pods := range m.waiting {
		delete(pods, uid)
	}
	for p := range m.cared {
		if p.uid == uid {
			delete(m.cared, p)
		}
	}
}

// careForAll looks at each volume once it is there, and then again and again.
func (m *Manager) careForAll(ctx context.Context) {
	tick := time.NewTicker(careEvery)
	defer tick.Stop()
	for {
		onlyNew := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-m.begun:
			onlyNew = true
		}
		m.mu.Lock()
		for _, c := range m.cared {
			if !c.busy && !(onlyNew && c.old) {
				c.busy = true
				m.work.Go(func() { m.careFor(ctx, c) })
			}
		}
		m.mu.Unlock()
	}
}

// careFor does what is due. What fails is tried again in a minute.
func (m *Manager) careFor(ctx context.Context, c *care) {
	defer func() {
		m.mu.Lock()
		c.busy, c.old = false, true
		m.mu.Unlock()
	}()
	d, err := m.driver(c.request.driver)
	if err != nil {
		return // its volumes stay as they are
	}
	for _, do := range []func(context.Context, *driver, *care) error{m.measure, m.publishAgain, m.grow} {
		if err := do(ctx, d, c); err != nil && ctx.Err() == nil {
			m.log.Warn("volume not cared for", "pod", c.request.Pod.Namespace+"/"+c.request.Pod.Name, "volume", c.request.Name, "err", err)
		}
	}
}

// measure asks the driver how full a volume is.
func (m *Manager) measure(ctx context.Context, d *driver, c *care) error {
	able, err := d.can(ctx, csi.NodeServiceCapability_RPC_GET_VOLUME_STATS)
	if err != nil || !able || c.request.block {
		return err
	}
	var reply *csi.NodeGetVolumeStatsResponse
	err = d.call(ctx, "NodeGetVolumeStats", func(ctx context.Context, client csi.NodeClient) (err error) {
		reply, err = client.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: c.request.handle, VolumePath: c.path})
		return err
	})
	if err != nil {
		return err
	}
	out := fsStats(reply.GetUsage())
	m.mu.Lock()
	c.stats = &out
	m.mu.Unlock()
	return nil
}

func fsStats(usage []*csi.VolumeUsage) stats.FsStats {
	out := stats.FsStats{Time: metav1.Now()}
	for _, u := range usage {
		total, free, used := uint64(u.Total), uint64(u.Available), uint64(u.Used)
		switch u.Unit {
		case csi.VolumeUsage_BYTES:
			out.CapacityBytes, out.AvailableBytes, out.UsedBytes = &total, &free, &used
		case csi.VolumeUsage_INODES:
			out.Inodes, out.InodesFree, out.InodesUsed = &total, &free, &used
		}
	}
	return out
}

// publishAgain gives the driver fresh tokens and attributes, if its CSIDriver says requiresRepublish. If it fails, what the
// pod sees stays.
func (m *Manager) publishAgain(ctx context.Context, d *driver, c *care) error {
	p, err := m.policy(ctx, c.request.driver)
	if err != nil || !p.republish || c.request.block || !c.old {
		return err
	}
	r := *c.request
	r.policy = p
	return m.held(ctx, d, &r, c.path, func(pub publication) error {
		ask, err := m.publishRequest(ctx, pub)
		if err != nil {
			return err
		}
		return d.publish(ctx, ask)
	})
}

// held does something about a published volume while nobody else does, unless its pod ends.
func (m *Manager) held(ctx context.Context, d *driver, r *request, path string, do func(publication) error) error {
	metadata, err := m.attached(ctx, r)
	if err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, string(r.unique()))
	if err != nil {
		return err
	}
	defer unlock()
	if there := isDevice(path) || m.isPublished(m.volumeDir(r.place()), path, r.volumeID); !there {
		return nil
	}
	stage, err := m.stage(ctx, d, r, metadata)
	if err != nil {
		return err
	}
	return do(publication{driver: d, request: r, metadata: metadata, stage: stage, target: path})
}

// grow has the driver grow the file system of a volume whose PersistentVolume is larger than its claim says, and tells the
// claim.
func (m *Manager) grow(ctx context.Context, d *driver, c *care) error {
	r := c.request
	if r.Claim == "" || m.cfg.Client == nil {
		return nil
	}
	able, err := d.can(ctx, csi.NodeServiceCapability_RPC_EXPAND_VOLUME)
	if err != nil || !able {
		return err
	}
	claim, err := m.cfg.Objects.PersistentVolumeClaim(ctx, r.Pod.Namespace, r.Claim)
	if err != nil {
		return err
	}
	pv, err := m.cfg.Objects.PersistentVolume(ctx, r.PV.Name)
	if err != nil {
		return err
	}
	size, has := pv.Spec.Capacity[v1.ResourceStorage], claim.Status.Capacity[v1.ResourceStorage]
	if has.IsZero() || size.Cmp(has) <= 0 || r.ReadOnly {
		return nil
	}
	grown, err := m.callGrow(ctx, d, c, size.Value())
	if err != nil {
		m.cfg.Event(r.Pod, v1.EventTypeWarning, "VolumeResizeFailed", fmt.Sprintf("MountVolume.NodeExpandVolume failed for volume %q: %v", r.Name, err))
		return err
	}
	if !grown {
		return nil
	}
	if err := m.tellGrown(ctx, claim, pv); err != nil {
		return err
	}
	m.cfg.Event(r.Pod, v1.EventTypeNormal, "FileSystemResizeSuccessful", fmt.Sprintf("MountVolume.NodeExpandVolume succeeded for volume %q", r.Name))
	return nil
}

// callGrow is false if the volume's pod ends.
func (m *Manager) callGrow(ctx context.Context, d *driver, c *care, bytes int64) (grown bool, err error) {
	r := c.request
	secrets, err := m.secret(ctx, r.expandSecret)
	if err != nil {
		return false, err
	}
	capability, err := d.capability(ctx, r)
	if err != nil {
		return false, err
	}
	err = m.held(ctx, d, r, c.path, func(pub publication) error {
		grown = true
		return d.call(ctx, "NodeExpandVolume", func(ctx context.Context, client csi.NodeClient) error {
			_, err := client.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
				VolumeId: r.handle, VolumePath: c.path, StagingTargetPath: pub.stage, VolumeCapability: capability,
				CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}, Secrets: secrets,
			})
			return err
		})
	})
	return grown, err
}

// tellGrown writes the new size into the claim's status, and that nothing is left to do.
func (m *Manager) tellGrown(ctx context.Context, claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) error {
	want := claim.DeepCopy()
	want.Status.Capacity[v1.ResourceStorage] = pv.Spec.Capacity[v1.ResourceStorage]
	delete(want.Status.AllocatedResourceStatuses, v1.ResourceStorage)
	want.Status.Conditions = slices.DeleteFunc(want.Status.Conditions, func(c v1.PersistentVolumeClaimCondition) bool {
		switch c.Type {
		case v1.PersistentVolumeClaimFileSystemResizePending, v1.PersistentVolumeClaimResizing, v1.PersistentVolumeClaimNodeResizeError:
			return true
		}
		return false
	})
	before, err := json.Marshal(claim)
	if err != nil {
		return err
	}
	after, err := json.Marshal(want)
	if err != nil {
		return err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, want)
	if err != nil {
		return err
	}
	_, err = m.cfg.Client.Claims.In(claim.Namespace).Patch(ctx, claim.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}
