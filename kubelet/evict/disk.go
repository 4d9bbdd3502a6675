package evict

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/pod"
)

// enforceDisk ends pods that use more of the disk than they may. Nothing is measured if no pod has a limit.
func (m *Manager) enforceDisk(ctx context.Context) error {
	var limited []*v1.Pod
	for _, p := range m.cfg.Pods() {
		if p.DeletionTimestamp == nil && hasDiskLimit(p) {
			limited = append(limited, p)
		}
		if message, over := m.emptyDirs(p); over {
			m.endNow(p, message)
		}
	}
	if len(limited) == 0 {
		return nil
	}
	summary, err := m.cfg.Stats.Summary(ctx)
	if err != nil {
		return err
	}
	for _, p := range limited {
		for i := range summary.Pods {
			if s := &summary.Pods[i]; s.PodRef.UID == string(p.UID) {
				if message, over := overLimit(p, s); over {
					m.endNow(p, message)
				}
			}
		}
	}
	return nil
}

// endNow ends a pod with little grace, as kubelet does for what fills the disk.
func (m *Manager) endNow(p *v1.Pod, message string) {
	grace := int64(1)
	m.end(p, message, &grace)
}

func hasDiskLimit(p *v1.Pod) bool {
	for c := range pod.Containers(p) {
		if !c.Resources.Limits.StorageEphemeral().IsZero() {
			return true
		}
	}
	return false
}

// emptyDirs finds a volume on disk that holds more than its sizeLimit. In memory the file system itself keeps the limit.
func (m *Manager) emptyDirs(p *v1.Pod) (message string, over bool) {
	for _, v := range p.Spec.Volumes {
		e := v.EmptyDir
		if p.DeletionTimestamp != nil || e == nil || e.Medium != v1.StorageMediumDefault || e.SizeLimit == nil || e.SizeLimit.IsZero() {
			continue
		}
		used, err := m.cfg.Used(p, v.Name)
		if err == nil && used > e.SizeLimit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, e.SizeLimit.String()), true
		}
	}
	return "", false
}

func overLimit(p *v1.Pod, s *stats.PodStats) (message string, over bool) {
	for i := range s.Containers {
		c, _ := pod.Container(p, s.Containers[i].Name)
		if c == nil {
			continue
		}
		limit := c.Resources.Limits.StorageEphemeral()
		if !limit.IsZero() && disk(&s.Containers[i]) > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String()), true
		}
	}
	limits := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})
	limit, has := limits[v1.ResourceEphemeralStorage]
	if has && s.EphemeralStorage != nil && number(s.EphemeralStorage.UsedBytes) > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String()), true
	}
	return "", false
}
