package status

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/orlop/orlop/kubelet/cluster"
	"github.com/orlop/orlop/kubelet/pod"
)

// senders is how many pods' statuses are on their way at a time.
const senders = 8

// retryAfter is how long a status waits that the API server did not take.
const retryAfter = 2 * time.Second

// Manager remembers the status of each pod and brings it to the API server: at once, the newest only, and one at a time
// for each pod. Without an API server it only remembers.
type Manager struct {
	client *cluster.Client // nil without an API server
	log    *slog.Logger

	mu   sync.Mutex
	pods map[types.UID]*entry
	wake chan types.UID
}

// entry is one pod's.
type entry struct {
	pod     *v1.Pod // as the API server has it: a mirror pod for a static one; nil until there is one
	status  v1.PodStatus
	version uint64 // of status
	sent    uint64 // the version that the API server has
	sending bool
	ended   bool // nothing of the pod is left on this node, and it may be deleted

	moved chan struct{} // closed when sent is another; nil while nobody waits
}

// NewManager sends through client, which may be nil.
func NewManager(client *cluster.Client, log *slog.Logger) *Manager {
	return &Manager{client: client, log: log, pods: map[types.UID]*entry{}, wake: make(chan types.UID, 4096)}
}

// Get is the status that was set last.
func (m *Manager) Get(uid types.UID) (v1.PodStatus, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.pods[uid]; e != nil && e.version > 0 {
		return *e.status.DeepCopy(), true
	}
	return v1.PodStatus{}, false
}

// Differs is true if a pod, as the API server has it now, does not say what was set last: somebody has changed it, or it is on
// its way.
func (m *Manager) Differs(uid types.UID, known *v1.Pod) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.pods[uid]
	return e == nil || e.version == 0 || e.ended || !says(known, e.status)
}

// says is true if the API server has what we say of the pod.
func says(known *v1.Pod, s v1.PodStatus) bool {
	_, changed, err := difference(known, merge(known, *s.DeepCopy()))
	return err == nil && !changed
}

// Set remembers and sends a pod's status. known is the pod as the API server has it, which for a static pod is its mirror;
// nil if it has none.
func (m *Manager) Set(uid types.UID, known *v1.Pod, s v1.PodStatus) {
	m.mu.Lock()
	e := m.entryLocked(uid)
	e.seeLocked(known)
	if e.version == 0 || !equality.Semantic.DeepEqual(&e.status, &s) {
		e.status = *s.DeepCopy()
		e.version++
	}
	due := e.dueLocked()
	m.mu.Unlock()
	if due {
		m.wakeUp(uid)
	}
}

// End says that nothing of the pod is left here. If it is being deleted, the API server may let it go now.
func (m *Manager) End(uid types.UID, known *v1.Pod) {
	m.mu.Lock()
	e := m.entryLocked(uid)
	e.seeLocked(known)
	e.ended = true
	due := e.dueLocked()
	m.mu.Unlock()
	if due {
		m.wakeUp(uid)
	}
}

// Forget drops a pod that neither the API server nor this node has.
func (m *Manager) Forget(uid types.UID) {
	m.mu.Lock()
	if e := m.pods[uid]; e != nil && e.moved != nil {
		close(e.moved)
	}
	delete(m.pods, uid)
	m.mu.Unlock()
}

func (m *Manager) entryLocked(uid types.UID) *entry {
	if m.pods[uid] == nil {
		m.pods[uid] = &entry{}
	}
	return m.pods[uid]
}

// seeLocked takes the pod as the API server has it, unless that is older than what is known already: a watch may be behind
// the answers to our own patches, and a patch is made of the difference to what the API server has now.
func (e *entry) seeLocked(known *v1.Pod) {
	switch {
	case known == nil:
	case e.pod == nil || e.pod.UID != known.UID: // another object: the mirror was made anew
		e.pod, e.sent = known, 0
	case newer(known, e.pod):
		e.pod = known
		if e.sent == e.version && !e.sending && !says(e.pod, e.status) {
			e.sent = 0
		}
	}
}

// newer compares two states of one object, see KEP-5504.
func newer(a, b *v1.Pod) bool {
	order, err := resourceversion.CompareResourceVersion(a.ResourceVersion, b.ResourceVersion)
	return err == nil && order > 0
}

// dueLocked is true if there is something to send.
func (e *entry) dueLocked() bool {
	return e.pod != nil && !e.sending && (e.sent < e.version || e.deletableLocked())
}

func (e *entry) deletableLocked() bool {
	return e.ended && e.pod.DeletionTimestamp != nil && !pod.IsMirror(e.pod)
}

func (m *Manager) wakeUp(uid types.UID) {
	if m.client != nil {
		m.wake <- uid
	}
}

// Run sends until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	if m.client == nil {
		return
	}
	var all sync.WaitGroup
	for range senders {
		all.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case uid := <-m.wake:
					m.send(ctx, uid)
				}
			}
		})
	}
	all.Wait()
}

// send brings one pod up to date. What changed meanwhile is sent by the same goroutine.
func (m *Manager) send(ctx context.Context, uid types.UID) {
	for {
		m.mu.Lock()
		e := m.pods[uid]
		if e == nil || !e.dueLocked() {
			m.mu.Unlock()
			return
		}
		e.sending = true
		known, status, version, deletable := e.pod, *e.status.DeepCopy(), e.version, e.deletableLocked()
		m.mu.Unlock()

		err := m.update(ctx, known, status, version, e)
		if err == nil && deletable {
			err = m.delete(ctx, known)
		}
		m.mu.Lock()
		e.sending = false
		if deletable && err == nil {
			e.ended = false // the pod's object goes; nothing more to do
		}
		m.mu.Unlock()
		if err != nil {
			if ctx.Err() == nil {
				m.log.Warn("status not sent", "pod", pod.Ref(known), "err", err)
				time.AfterFunc(retryAfter, func() { m.wakeUp(uid) })
			}
			return
		}
	}
}

// update patches what differs from the API server's status.
func (m *Manager) update(ctx context.Context, known *v1.Pod, status v1.PodStatus, version uint64, e *entry) error {
	m.mu.Lock()
	current := e.sent >= version
	m.mu.Unlock()
	if current || version == 0 {
		return nil
	}
	status = merge(known, status)
	patch, changed, err := difference(known, status)
	if err == nil && changed {
		var updated *v1.Pod
		updated, err = m.client.Pods.In(known.Namespace).Patch(ctx, known.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if err == nil {
			m.mu.Lock()
			if newer(updated, e.pod) {
				e.pod = updated
			}
			m.mu.Unlock()
		}
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone, or another pod of this name by now
		err = nil
	}
	if err != nil {
		return fmt.Errorf("patch status: %w", err)
	}
	m.mu.Lock()
	e.sent = max(e.sent, version)
	if e.moved != nil {
		close(e.moved)
		e.moved = nil
	}
	m.mu.Unlock()
	return nil
}

// Settle waits until the API server has what was said of a pod last, if it has the pod.
func (m *Manager) Settle(ctx context.Context, uid types.UID) error {
	for {
		moved := m.unsent(uid)
		if moved == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("status not sent: %w", ctx.Err())
		case <-moved:
		}
	}
}

// unsent is closed when something was sent of a pod of which something is yet to be sent; nil if nothing is.
func (m *Manager) unsent(uid types.UID) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.pods[uid]
	if m.client == nil || e == nil || e.pod == nil || e.sent >= e.version {
		return nil
	}
	if e.moved == nil {
		e.moved = make(chan struct{})
	}
	return e.moved
}

// merge keeps the conditions that others have set meanwhile.
func merge(known *v1.Pod, s v1.PodStatus) v1.PodStatus {
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c v1.PodCondition) bool { return !IsOwn(c.Type) && c.Type != v1.DisruptionTarget })
	for _, c := range known.Status.Conditions {
		if keeps(known, &s, c.Type) {
			s.Conditions = append(s.Conditions, c)
		}
	}
	return s
}

// keeps is true for a condition of the API server's that is not ours to replace. Nobody else ends static pods, so their
// mirrors have the DisruptionTarget that is ours, or none.
func keeps(known *v1.Pod, s *v1.PodStatus, kind v1.PodConditionType) bool {
	if kind == v1.DisruptionTarget {
		return !pod.IsMirror(known) && pod.Condition(s, kind) == nil
	}
	return !IsOwn(kind)
}

// difference is a patch of the status. It carries the UID, so that a new pod of the same name does not take it.
func difference(known *v1.Pod, s v1.PodStatus) (patch []byte, changed bool, err error) {
	before, err := json.Marshal(v1.Pod{Status: known.Status})
	if err != nil {
		return nil, false, err
	}
	after, err := json.Marshal(v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: known.UID}, Status: s})
	if err != nil {
		return nil, false, err
	}
	patch, err = strategicpatch.CreateTwoWayMergePatch(before, after, v1.Pod{})
	if err != nil {
		return nil, false, err
	}
	return patch, string(patch) != fmt.Sprintf(`{"metadata":{"uid":%q}}`, known.UID), nil
}

// delete ends a graceful deletion, see the pod lifecycle of the Kubernetes documentation.
func (m *Manager) delete(ctx context.Context, known *v1.Pod) error {
	now := int64(0)
	err := m.client.Pods.In(known.Namespace).Delete(ctx, known.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &known.UID},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end deletion: %w", err)
	}
	return nil
}
