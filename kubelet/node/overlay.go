package node

import (
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// overlay is found with what this kubelet answers for taken from own. All else in a status is others' and changes without
// us: a network plugin's condition, an administrator's resources, a cloud's addresses. An old copy of these must never go
// back to the API server.
func (m *Manager) overlay(found, own *v1.NodeStatus) v1.NodeStatus {
	out := *found.DeepCopy()
	mine := own.DeepCopy()
	out.NodeInfo, out.DaemonEndpoints = mine.NodeInfo, mine.DaemonEndpoints
	out.Images, out.VolumesInUse = mine.Images, mine.VolumesInUse
	out.RuntimeHandlers, out.Features, out.DeclaredFeatures = mine.RuntimeHandlers, mine.Features, mine.DeclaredFeatures
	if !m.cfg.CloudProvider || len(out.Addresses) == 0 {
		out.Addresses = mine.Addresses
	}
	out.Capacity = ownResources(out.Capacity, m.cfg.Capacity)
	out.Allocatable = ownResources(out.Capacity, m.cfg.Allocatable) // of what others have added to the capacity, pods may have all
	for _, c := range mine.Conditions {
		if ownConditions[c.Type] {
			out.Conditions = putCondition(out.Conditions, c)
		}
	}
	return out
}

var ownConditions = map[v1.NodeConditionType]bool{
	v1.NodeMemoryPressure: true, v1.NodeDiskPressure: true, v1.NodePIDPressure: true, v1.NodeReady: true,
}

// ownResources are ours in place of those with our names: a huge page size that the kernel no longer has goes.
func ownResources(found, own v1.ResourceList) v1.ResourceList {
	out := v1.ResourceList{}
	for name, q := range found {
		if !isOwnResource(name) {
			out[name] = q
		}
	}
	maps.Copy(out, own)
	return out
}

// putCondition puts c in the place of the one that the API server has. The time of the last change is of what the API server
// showed: the control plane sets Unknown on a node that it does not hear of, and the way back from that is a change.
func putCondition(conditions []v1.NodeCondition, c v1.NodeCondition) []v1.NodeCondition {
	i := indexOf(conditions, c.Type)
	if i < 0 {
		return append(conditions, c)
	}
	found := &conditions[i]
	if found.Status == c.Status {
		c.LastTransitionTime = found.LastTransitionTime
	} else if c.LastTransitionTime.Before(&found.LastTransitionTime) {
		c.LastTransitionTime = c.LastHeartbeatTime
	}
	conditions[i] = c
	return conditions
}

// indexOf is where a condition is; -1 if it is not there.
func indexOf(conditions []v1.NodeCondition, kind v1.NodeConditionType) int {
	return slices.IndexFunc(conditions, func(c v1.NodeCondition) bool { return c.Type == kind })
}

// withoutHeartbeats is a status without the times that change though nothing happens.
func withoutHeartbeats(s *v1.NodeStatus) *v1.NodeStatus {
	out := s.DeepCopy()
	for i := range out.Conditions {
		out.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	return out
}
