package probe

import (
	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

// Apply sets Started and Ready in the container statuses of status, but for ephemeral containers, which have no probes.
// Where there is no result yet, Started and Ready that stand in status or in p.Status for the same container ID are
// kept: this process was restarted, and nothing happened to the container. A readiness probe that says no is made once
// more at once, since what has just changed in the pod may be what the container waited for.
func (m *Manager) Apply(p *v1.Pod, status *v1.PodStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, list := range [][]v1.ContainerStatus{status.InitContainerStatuses, status.ContainerStatuses} {
		for i := range list {
			m.applyLocked(p, &list[i])
		}
	}
}

func (m *Manager) applyLocked(p *v1.Pod, cs *v1.ContainerStatus) {
	c, kind := pod.Container(p, cs.Name)
	if c == nil {
		return
	}
	v := view{pod: p, container: c, cs: cs}
	started := m.startedLocked(v)
	switch {
	case kind == pod.Init:
		cs.Ready = cs.State.Terminated != nil && cs.State.Terminated.ExitCode == 0
	case started:
		cs.Ready = m.readyLocked(v)
	default:
		cs.Ready = false
	}
	cs.Started = &started
}

// startedLocked: a container has started when its startup probe says so, or when it runs and has none.
func (m *Manager) startedLocked(v view) bool {
	if v.cs.State.Running == nil {
		return false
	}
	if v.container.StartupProbe == nil {
		return true
	}
	key := resultKey{v.id(), Startup}
	if r, known := m.results[key]; known {
		return r.success
	}
	if !isTrue(v.cs.Started) && !isTrue(v.earlier().Started) {
		return false
	}
	if m.holdsLocked(v, key) {
		m.results[key] = result{success: true} // so that it does not depend on who still remembers the earlier status
	}
	return true
}

// holdsLocked: results are only kept for containers whose going will remove them.
func (m *Manager) holdsLocked(v view, key resultKey) bool {
	pp := m.pods[v.pod.UID]
	if pp == nil {
		return false
	}
	s := pp.slots[slotKey{v.container.Name, key.kind}]
	return s != nil && s.containerID == key.containerID
}

func (m *Manager) readyLocked(v view) bool {
	if v.container.ReadinessProbe == nil {
		return true
	}
	r, known := m.results[resultKey{v.id(), Readiness}]
	if !known && m.adopted(v.cs) {
		r.success = v.cs.Ready || v.earlier().Ready
	}
	if !r.success {
		m.pokeLocked(v)
	}
	return r.success
}

func (m *Manager) pokeLocked(v view) {
	pp := m.pods[v.pod.UID]
	if pp == nil {
		return
	}
	if s := pp.slots[slotKey{v.container.Name, Readiness}]; s != nil && s.worker != nil {
		s.worker.pokeOnce()
	}
}

// earlier is what the pod's own status says of the same container; an empty status if nothing.
func (v view) earlier() *v1.ContainerStatus {
	if old := pod.ContainerStatus(&v.pod.Status, v.cs.Name); old != nil && bareID(old.ContainerID) == v.id() {
		return old
	}
	return &v1.ContainerStatus{}
}

func isTrue(b *bool) bool { return b != nil && *b }
