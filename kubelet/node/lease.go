package node

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// beat renews the lease until ctx ends, four times in its duration; a little later each time, so that the nodes of a cluster
// that were started together don't beat together. What fails is tried again sooner: the control plane gives a node up whose
// lease is not renewed in time.
func (m *Manager) beat(ctx context.Context) {
	interval := time.Duration(m.cfg.LeaseSeconds) * time.Second / 4
	var lease *coordinationv1.Lease // as the API server had it last; nil if that is not known
	failures := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		attempt, cancel := context.WithTimeout(ctx, interval) // a connection that hangs must not take the lease with it
		renewed, err := m.renew(attempt, lease)
		cancel()
		if err == nil {
			lease, failures = renewed, 0
			timer.Reset(wait.Jitter(interval, 0.04))
			continue
		}
		lease = nil // ask how it is
		if ctx.Err() == nil {
			m.cfg.Log.Warn("lease not renewed; it is tried again", "err", err)
		}
		timer.Reset(min(200*time.Millisecond<<min(failures, 6), interval))
		failures++
	}
}

// renew says that the node lives, based on the lease as it was last, or as it is if that is nil.
func (m *Manager) renew(ctx context.Context, base *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	leases := m.cfg.Client.Leases.In(v1.NamespaceNodeLease)
	if base == nil {
		found, err := leases.Get(ctx, m.cfg.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			created, err := leases.Create(ctx, m.alive(&coordinationv1.Lease{}), metav1.CreateOptions{})
			if err != nil {
				return nil, fmt.Errorf("create lease: %w", err)
			}
			return created, nil
		}
		if err != nil {
			return nil, fmt.Errorf("get lease: %w", err)
		}
		base = found
	}
	updated, err := leases.Update(ctx, m.alive(base), metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("update lease: %w", err)
	}
	return updated, nil
}

// alive is a lease that is renewed now. It goes with its Node.
func (m *Manager) alive(base *coordinationv1.Lease) *coordinationv1.Lease {
	l := base.DeepCopy()
	l.Name, l.Namespace = m.cfg.Name, v1.NamespaceNodeLease
	if l.Spec.HolderIdentity == nil {
		l.Spec.HolderIdentity = &m.cfg.Name
	}
	l.Spec.LeaseDurationSeconds = &m.cfg.LeaseSeconds
	now := metav1.NowMicro()
	l.Spec.RenewTime = &now
	if n := m.Registered(); n != nil && len(l.OwnerReferences) == 0 {
		l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
	}
	return l
}
