// Package node makes the Node object of this machine and keeps it true: registration, addresses, capacity, conditions,
// images, and the lease by which the control plane knows that the node lives.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/kubelet/cluster"
)

// kubeletVersion is what nodeInfo tells: the release of kubelet whose behaviour this one has.
const kubeletVersion = "v1.37.2"

// tries is how often a status is sent before the next period.
const tries = 5

// Config is what the Node is made of.
type Config struct {
	Name, Hostname string
	IPs            []net.IP
	GivenIPs       bool // somebody has chosen them; else they were found
	CloudProvider  bool // a cloud controller manager gives addresses
	ProviderID     string
	Labels         map[string]string
	Taints         []v1.Taint
	Register       bool
	Client         *cluster.Client // nil on a lone machine
	Events         record.EventRecorder

	Info                  v1.NodeSystemInfo
	Capacity, Allocatable v1.ResourceList
	Swap                  int64 // bytes
	Port                  int32 // of the kubelet API
	MaxImages             int   // in the status; -1 for all

	Every, Report time.Duration // how often the status is computed, and sent if nothing changed
	LeaseSeconds  int32

	Runtime   Runtime
	Pressure  func() Pressure
	Healthy   func() error // of the kubelet's own loops
	InUse     func() []v1.UniqueVolumeName
	PodCIDR   func(ctx context.Context, cidr string) error // told when the API server gives one
	StatusNow <-chan struct{}                              // something changed that should be told at once
	Log       *slog.Logger
}

// Runtime is what of the CRI runtime the Node tells.
type Runtime interface {
	Status(ctx context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error)
	Version(ctx context.Context, r *cri.VersionRequest) (*cri.VersionResponse, error)
	ListImages(ctx context.Context, r *cri.ListImagesRequest) (*cri.ListImagesResponse, error)
}

// Pressure is what the node is short of.
type Pressure struct{ Memory, Disk, PIDs bool }

// Manager keeps the Node.
type Manager struct {
	cfg Config

	mu       sync.Mutex
	node     *v1.Node // as last seen or sent
	known    bool     // the API server has it
	features map[string]*cri.RuntimeHandlerFeatures
	network  error // why pods can't get a network now
	sentAt   time.Time
	reported map[v1.UniqueVolumeName]bool // volumes in use, as the API server has them
	changed  chan struct{}                // closed when one of these is not as it was; nil while nobody waits

	givenCIDR string        // of the loop alone
	seen      chan struct{} // the API server has another Node
}

// New makes a Manager. Before Run, the Node has what is known without the runtime.
func New(cfg Config) *Manager {
	m := &Manager{cfg: cfg, seen: make(chan struct{}, 1), features: map[string]*cri.RuntimeHandlerFeatures{}, network: errors.New("the runtime was not asked yet")}
	m.node = m.initial()
	return m
}

// Node is the object as it was last seen or sent; it must not be changed.
func (m *Manager) Node() *v1.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}

// Registered is the object that the API server has; nil before it has it.
func (m *Manager) Registered() *v1.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.known {
		return nil
	}
	return m.node
}

// NetworkReady is an error while pods can't get a network.
func (m *Manager) NetworkReady() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.network
}

// RecursiveReadOnly tells whether a runtime handler, "" for the default one, has recursive read-only mounts.
func (m *Manager) RecursiveReadOnly(handler string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.features[handler].GetRecursiveReadOnlyMounts()
}

// Run keeps the Node until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	m.event(v1.EventTypeNormal, "Starting", "Starting kubelet.")
	m.refresh(ctx)
	if m.cfg.Client == nil {
		m.loop(ctx, func() {})
		return
	}
	var all sync.WaitGroup
	if m.register(ctx) {
		all.Go(func() { m.follow(ctx) })
		all.Go(func() { m.beat(ctx) })
		m.loop(ctx, func() { m.send(ctx) })
	}
	all.Wait()
}

// loop computes the status in each period, and at once when asked to.
func (m *Manager) loop(ctx context.Context, then func()) {
	then()
	m.giveCIDR(ctx)
	// A runtime that starts beside this process is ready within a moment; nobody should wait ten seconds for it.
	period := min(m.cfg.Every, time.Second)
	timer := time.NewTimer(period)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.seen: // which must not put off the next status
			m.giveCIDR(ctx)
			continue
		case <-m.cfg.StatusNow:
		case <-timer.C:
		}
		m.refresh(ctx)
		then()
		m.giveCIDR(ctx)
		if m.NetworkReady() == nil {
			period = m.cfg.Every
		}
		timer.Reset(period)
	}
}

// follow watches the Node, for its labels, taints and pod CIDR.
func (m *Manager) follow(ctx context.Context) {
	informer := cache.NewSharedInformer(m.cfg.Client.Nodes.All().Source(kube.Named(m.cfg.Name)), &v1.Node{}, 0)
	seen := func(o any) {
		if n, ok := o.(*v1.Node); ok {
			m.take(n)
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }})
	if err != nil {
		m.cfg.Log.Error("node is not followed", "err", err)
		return
	}
	informer.RunWithContext(ctx)
}

// take takes what others decide; of the status, all that is not ours.
func (m *Manager) take(n *v1.Node) {
	m.mu.Lock()
	taken := n.DeepCopy()
	taken.Status = m.overlay(&n.Status, &m.node.Status)
	m.schedulableLocked(taken)
	m.node = taken
	m.tellWaitersLocked()
	m.mu.Unlock()
	select {
	case m.seen <- struct{}{}:
	default:
	}
}

// schedulableLocked makes an event if somebody has cordoned the node or uncordoned it.
func (m *Manager) schedulableLocked(now *v1.Node) {
	switch {
	case now.Spec.Unschedulable == m.node.Spec.Unschedulable:
	case now.Spec.Unschedulable:
		m.statusEvent("NodeNotSchedulable")
	default:
		m.statusEvent("NodeSchedulable")
	}
}

// giveCIDR tells the runtime the node's pod CIDRs, all of them with commas between, once they are known and when they change.
func (m *Manager) giveCIDR(ctx context.Context) {
	cidr := strings.Join(m.Node().Spec.PodCIDRs, ",")
	if cidr == "" || cidr == m.givenCIDR {
		return
	}
	if err := m.cfg.PodCIDR(ctx, cidr); err != nil {
		m.cfg.Log.Warn("runtime did not take the pod CIDR, it is tried again", "cidr", cidr, "err", err)
		return
	}
	m.givenCIDR = cidr
}

// register creates the Node, or takes over the one that is there. It is false if ctx ended first.
func (m *Manager) register(ctx context.Context) bool {
	delay := 100 * time.Millisecond
	for ctx.Err() == nil {
		err := m.tryRegister(ctx)
		if err == nil {
			return true
		}
		m.cfg.Log.Warn("node not registered yet", "node", m.cfg.Name, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, 7*time.Second)
	}
	return false
}

func (m *Manager) tryRegister(ctx context.Context) error {
	nodes := m.cfg.Client.Nodes.All()
	if !m.cfg.Register {
		found, err := nodes.Get(ctx, m.cfg.Name, metav1.GetOptions{})
		if err == nil {
			m.adopt(found, &found.Status)
		}
		return err
	}
	want := m.fresh()
	made, err := nodes.Create(ctx, want, metav1.CreateOptions{})
	if err == nil {
		m.adopt(made, &v1.NodeStatus{})
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	found, err := nodes.Get(ctx, m.cfg.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	reconciled := m.reconcile(found, want)
	if !equality.Semantic.DeepEqual(found, reconciled) {
		if found, err = nodes.Update(ctx, reconciled, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update: %w", err)
		}
	}
	m.adopt(found, &found.Status)
	return nil
}

// fresh is the Node as it is registered, with the status as it is now and with nothing of an earlier Node that was deleted.
func (m *Manager) fresh() *v1.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.initial()
	n.Status = m.overlay(&v1.NodeStatus{}, &m.node.Status)
	return n
}

// reconcile gives a Node that was there before the labels and the annotation that this kubelet answers for.
func (m *Manager) reconcile(found, want *v1.Node) *v1.Node {
	out := found.DeepCopy()
	for _, name := range ownLabels {
		if value := want.Labels[name]; value != "" {
			set(&out.Labels, name, value)
		}
	}
	set(&out.Annotations, attachAnnotation, "true")
	if ips, given := want.Annotations[givenAnnotation]; given {
		set(&out.Annotations, givenAnnotation, ips)
	} else {
		delete(out.Annotations, givenAnnotation)
	}
	return out
}

func set(m *map[string]string, name, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[name] = value
}

// adopt begins with the API server's object and the status that was computed. Conditions keep the times at which they changed.
// had is what the API server knew before.
func (m *Manager) adopt(n *v1.Node, had *v1.NodeStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n.Spec.ProviderID == "" {
		n.Spec.ProviderID = m.cfg.ProviderID
	}
	taken := n.DeepCopy()
	taken.Status = m.overlay(&n.Status, &m.node.Status)
	m.newsLocked(had, &taken.Status)
	m.node, m.known = taken, true
	m.tellWaitersLocked()
}

// newsLocked makes events of what the API server did not know of the node, or knew otherwise.
func (m *Manager) newsLocked(had, have *v1.NodeStatus) {
	if boot := had.NodeInfo.BootID; boot != "" && boot != m.cfg.Info.BootID {
		m.event(v1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", m.cfg.Name, m.cfg.Info.BootID))
	}
	before, now := indexOf(had.Conditions, v1.NodeReady), indexOf(have.Conditions, v1.NodeReady)
	if now >= 0 && (before < 0 || had.Conditions[before].Status != have.Conditions[now].Status) {
		m.statusEvent(eventReason(have.Conditions[now]))
	}
}

// send patches the status if it changed, or if it was not sent for long.
func (m *Manager) send(ctx context.Context) {
	m.mu.Lock()
	due := m.sentAt.IsZero() || time.Since(m.sentAt) >= m.cfg.Report
	m.mu.Unlock()
	for range tries {
		sent, err := m.patch(ctx, due)
		if err == nil {
			if sent {
				m.mu.Lock()
				m.sentAt = time.Now()
				m.mu.Unlock()
			}
			return
		}
		if ctx.Err() != nil {
			return
		}
		m.cfg.Log.Warn("node status not sent", "err", err)
		if apierrors.IsNotFound(err) { // somebody deleted the node, and it lives
			if err := m.tryRegister(ctx); err != nil {
				m.cfg.Log.Warn("node not registered anew", "err", err)
			}
			return
		}
	}
}

func (m *Manager) patch(ctx context.Context, due bool) (sent bool, err error) {
	found, err := m.cfg.Client.Nodes.All().Get(ctx, m.cfg.Name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return false, err
	}
	m.mu.Lock()
	want := found.DeepCopy()
	want.Status = m.overlay(&found.Status, &m.node.Status)
	m.mu.Unlock()
	if !due && !changed(&found.Status, &want.Status) {
		m.report(want.Status.VolumesInUse)
		return false, nil
	}
	patch, err := statusPatch(found, want)
	if err != nil {
		return false, err
	}
	updated, err := m.cfg.Client.Nodes.All().Patch(ctx, m.cfg.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return false, err
	}
	m.mu.Lock()
	m.node = updated
	m.mu.Unlock()
	m.report(want.Status.VolumesInUse)
	return true, nil
}

// changed compares two statuses but for the times of heartbeats.
func changed(a, b *v1.NodeStatus) bool {
	return !equality.Semantic.DeepEqual(withoutHeartbeats(a), withoutHeartbeats(b))
}
