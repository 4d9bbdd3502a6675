package csi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// idsAnnotation tells the IDs that drivers have given the Node, as a JSON object by their names.
const idsAnnotation = "csi.volume.kubernetes.io/nodeid"

// apiTime is how long the API server may take for what one driver needs.
const apiTime = 30 * time.Second

// makeCSINode makes the CSINode of this node, without which the scheduler knows no limit for its volumes, and returns the
// Node. The error is ctx's.
func (m *Manager) makeCSINode(ctx context.Context) (*v1.Node, error) {
	wait := firstAttempt
	for {
		n, err := m.cfg.Node.WaitRegistered(ctx)
		if err == nil {
			m.nodeMu.Lock()
			_, err = m.csiNode(ctx, n)
			m.nodeMu.Unlock()
		}
		if err == nil || ctx.Err() != nil {
			return n, ctx.Err()
		}
		m.log.Warn("CSINode not made, it is tried again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, 10*time.Second)
	}
}

// followNode puts all drivers on the CSINode of a Node that takes the place of the one that was deleted, which took its CSINode
// with it.
func (m *Manager) followNode(ctx context.Context, n *v1.Node) {
	for m.cfg.Node.WaitReplaced(ctx, n.UID) == nil {
		var err error
		if n, err = m.makeCSINode(ctx); err != nil {
			return
		}
		m.nodeMu.Lock()
		for _, d := range m.allDrivers() {
			if err := m.install(ctx, d); err != nil && ctx.Err() == nil {
				m.log.Warn("driver is not on the list of the new Node", "driver", d.name, "err", err)
			}
		}
		m.nodeMu.Unlock()
	}
}

// csiNode is the CSINode of the Node, which is made if there is none. That of an earlier Node of this name, whose drivers may
// never have been here, is replaced.
func (m *Manager) csiNode(ctx context.Context, n *v1.Node) (*storagev1.CSINode, error) {
	all := m.cfg.Client.CSINodes.All()
	found, err := all.Get(ctx, m.cfg.Name, metav1.GetOptions{})
	if err == nil {
		if slices.ContainsFunc(found.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Kind == "Node" && o.UID == n.UID }) {
			return found, nil
		}
		if err := all.Delete(ctx, m.cfg.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("remove the CSINode of an earlier Node: %w", err)
		}
	} else if !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("CSINode: %w", err)
	}
	made, err := all.Create(ctx, &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{
		Name:            m.cfg.Name,
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}},
	}}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("make the CSINode: %w", err)
	}
	return made, nil
}

// install puts a driver on the CSINode, and its topology and its ID of the node on the Node.
func (m *Manager) install(ctx context.Context, d *driver) error {
	ctx, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	n, err := m.cfg.Node.WaitRegistered(ctx)
	if err != nil {
		return fmt.Errorf("the node is not registered: %w", err)
	}
	if n, err = m.cfg.Client.Nodes.All().Get(ctx, n.Name, metav1.GetOptions{}); err != nil {
		return err
	}
	if err := m.markNode(ctx, n, d.node.GetAccessibleTopology().GetSegments(), func(ids map[string]string) { ids[d.name] = d.node.NodeId }); err != nil {
		return err
	}
	entry := entryOf(d)
	return m.updateCSINode(ctx, n, func(drivers []storagev1.CSINodeDriver) []storagev1.CSINodeDriver {
		i := slices.IndexFunc(drivers, func(o storagev1.CSINodeDriver) bool { return o.Name == d.name })
		if i < 0 {
			return append(drivers, entry)
		}
		drivers[i] = entry
		return drivers
	})
}

// entryOf is a driver as the CSINode has it.
func entryOf(d *driver) storagev1.CSINodeDriver {
	out := storagev1.CSINodeDriver{
		Name: d.name, NodeID: d.node.NodeId, TopologyKeys: slices.Sorted(maps.Keys(d.node.GetAccessibleTopology().GetSegments())),
	}
	if limit := d.node.MaxVolumesPerNode; limit > 0 {
		out.Allocatable = &storagev1.VolumeNodeResources{Count: new(int32(min(limit, math.MaxInt32)))}
	}
	return out
}

func (m *Manager) uninstall(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	n, err := m.cfg.Client.Nodes.All().Get(ctx, m.cfg.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	err = m.updateCSINode(ctx, n, func(drivers []storagev1.CSINodeDriver) []storagev1.CSINodeDriver {
		return slices.DeleteFunc(drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == name })
	})
	if err != nil {
		return err
	}
	return m.markNode(ctx, n, nil, func(ids map[string]string) { delete(ids, name) })
}

// updateCSINode changes the list of drivers. What another has changed meanwhile is read again.
func (m *Manager) updateCSINode(ctx context.Context, n *v1.Node, change func([]storagev1.CSINodeDriver) []storagev1.CSINodeDriver) error {
	const tries = 5
	for try := range tries {
		found, err := m.csiNode(ctx, n)
		if err != nil {
			return err
		}
		want := found.DeepCopy()
		want.Spec.Drivers = change(want.Spec.Drivers)
		if equality.Semantic.DeepEqual(found.Spec, want.Spec) {
			return nil
		}
		_, err = m.cfg.Client.CSINodes.All().Update(ctx, want, metav1.UpdateOptions{})
		if err == nil || !apierrors.IsConflict(err) || try == tries-1 {
			return err
		}
	}
	return nil
}

// markNode patches the Node's labels, and the annotation with the drivers' IDs.
func (m *Manager) markNode(ctx context.Context, n *v1.Node, labels map[string]string, change func(ids map[string]string)) error {
	missing, err := missingLabels(n, labels)
	if err != nil {
		return err
	}
	ids, err := changedIDs(n, change)
	if err != nil {
		return err
	}
	metadata := map[string]any{}
	if len(missing) > 0 {
		metadata["labels"] = missing
	}
	if len(ids) > 0 {
		metadata["annotations"] = ids
	}
	if len(metadata) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	_, err = m.cfg.Client.Nodes.All().Patch(ctx, n.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	return err
}

// missingLabels are those that the Node does not have. One that it has with another value is not changed: volumes have been
// placed by it.
func missingLabels(n *v1.Node, labels map[string]string) (map[string]string, error) {
	missing := map[string]string{}
	for key, value := range labels {
		switch current, ok := n.Labels[key]; {
		case !ok:
			missing[key] = value
		case current != value:
			return nil, fmt.Errorf("its topology has %s=%s, and the node has the label %s=%s; remove one of them", key, value, key, current)
		}
	}
	return missing, nil
}

// changedIDs is the annotation with the drivers' IDs as a patch has it, null if there are none; empty if it stays.
func changedIDs(n *v1.Node, change func(ids map[string]string)) (map[string]any, error) {
	ids := map[string]string{}
	if text := n.Annotations[idsAnnotation]; text != "" {
		if err := json.Unmarshal([]byte(text), &ids); err != nil {
			return nil, fmt.Errorf("the node's annotation %s: %w", idsAnnotation, err)
		}
	}
	before := maps.Clone(ids)
	change(ids)
	if maps.Equal(before, ids) {
		return nil, nil
	}
	if len(ids) == 0 {
		return map[string]any{idsAnnotation: nil}, nil
	}
	text, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	return map[string]any{idsAnnotation: string(text)}, nil
}
