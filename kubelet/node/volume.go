package node

import (
	"context"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// WaitRegistered returns the Node once the API server has it.
func (m *Manager) WaitRegistered(ctx context.Context) (*v1.Node, error) {
	var n *v1.Node
	err := m.wait(ctx, func() bool {
		n = m.node
		return m.known
	})
	return n, err
}

// WaitReplaced waits until the API server has a Node with another UID: somebody deleted it, and it was registered anew.
func (m *Manager) WaitReplaced(ctx context.Context, uid types.UID) error {
	return m.wait(ctx, func() bool { return m.known && m.node.UID != uid })
}

// WaitAttached waits until the API server has been told that a volume is in use here, after which the control plane does not
// detach it, and says that it is attached.
func (m *Manager) WaitAttached(ctx context.Context, volume v1.UniqueVolumeName) error {
	return m.wait(ctx, func() bool {
		return m.reported[volume] && slices.ContainsFunc(m.node.Status.VolumesAttached, func(a v1.AttachedVolume) bool { return a.Name == volume })
	})
}

// wait returns when ok is true, which is asked with mu held, or with ctx's error.
func (m *Manager) wait(ctx context.Context, ok func() bool) error {
	for {
		m.mu.Lock()
		is := ok()
		if m.changed == nil {
			m.changed = make(chan struct{})
		}
		changed := m.changed
		m.mu.Unlock()
		if is {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *Manager) tellWaitersLocked() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// report notes which volumes the API server has been told to be in use.
func (m *Manager) report(volumes []v1.UniqueVolumeName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reported = map[v1.UniqueVolumeName]bool{}
	for _, v := range volumes {
		m.reported[v] = true
	}
	m.tellWaitersLocked()
}
