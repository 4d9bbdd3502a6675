package kubelet

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/pod"
)

// withMirror sees to it that an API server has a picture of a static pod: a mirror pod, made anew if somebody deleted it or
// if it is of another manifest. The pod is returned with the status that its mirror has, so that a restart of this process
// begins where the last one ended. An API server that is away keeps no static pod from running.
func (w *worker) withMirror(ctx context.Context, p *v1.Pod) (*v1.Pod, error) {
	if !pod.IsStatic(p) || w.k.cfg.Client == nil {
		return p, nil
	}
	m := w.k.pods.mirror(w.fullName)
	switch {
	case m != nil && (m.DeletionTimestamp != nil || m.Annotations[pod.MirrorAnnotation] != p.Annotations[pod.HashAnnotation]):
		if err := w.deleteMirror(ctx, m); err != nil {
			w.log.Warn("old mirror pod not deleted", "err", err)
		}
	case m != nil:
		p = p.DeepCopy()
		p.Status = *m.Status.DeepCopy()
		p.Status.QOSClass = ""
		p.Status.QOSClass = pod.QoS(p)
	case w.k.cfg.NodeState().Object != nil: // a mirror pod needs its node
		if err := w.createMirror(ctx, p); err != nil {
			w.log.Warn("mirror pod not made", "err", err)
		}
	}
	return p, nil
}

func (w *worker) createMirror(ctx context.Context, p *v1.Pod) error {
	m := &v1.Pod{ObjectMeta: *p.ObjectMeta.DeepCopy(), Spec: *p.Spec.DeepCopy()}
	m.UID, m.CreationTimestamp = "", metav1.Time{}
	m.Annotations[pod.MirrorAnnotation] = p.Annotations[pod.HashAnnotation]
	if node := w.k.cfg.NodeState().Object; node != nil && node.UID != "" {
		yes := true
		m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: &yes}}
	}
	_, err := w.k.cfg.Client.Pods.In(m.Namespace).Create(ctx, m, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create mirror pod: %w", err)
	}
	return nil
}

func (w *worker) deleteMirror(ctx context.Context, m *v1.Pod) error {
	now := int64(0)
	uid := types.UID(m.UID)
	err := w.k.cfg.Client.Pods.In(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &uid},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete mirror pod: %w", err)
	}
	return nil
}

// dropMirror deletes the mirror of a static pod that is gone.
func (w *worker) dropMirror(ctx context.Context, p *v1.Pod) error {
	if m := w.apiPod(p); pod.IsStatic(p) && m != nil && w.k.cfg.Client != nil {
		return w.deleteMirror(ctx, m)
	}
	return nil
}
