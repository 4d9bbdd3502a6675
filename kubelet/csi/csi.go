// Package csi mounts volumes of the Container Storage Interface's drivers that run on this node, and tells the cluster
// which drivers these are.
//
//	plugins_registry/DRIVER-reg.sock ──▶ registration ──▶ CSINode, the Node's labels
//
//	Publish:   record in the pod's directory ──▶ attached ──▶ record, NodeStageVolume ──▶ NodePublishVolume ──▶ record: done
//	Unpublish: NodeUnpublishVolume ──▶ record away ──▶ unless a pod has a record of the volume: NodeUnstageVolume, record away
//
// What must be undone is on disk before it is done, at kubelet's places and in its form, so this process may be killed at any
// moment, and a node may go from one to the other. Who uses a volume is read from these records, never from memory. Each step
// may be repeated: CSI demands it of drivers.
//
// Locks: one per volume, held while a driver works on it; mu is for maps only and is never held across a call.
package csi

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/cluster"
)

// Times that kubelet gives to drivers.
const (
	callTime   = 2 * time.Minute // for one call
	attachTime = 2 * time.Minute // until the control plane has attached a volume
)

// Objects gets what volumes are described by. What does not exist is an error that apierrors.IsNotFound knows.
type Objects interface {
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
	CSIDriver(ctx context.Context, name string) (*storagev1.CSIDriver, error)
	PersistentVolumeClaim(ctx context.Context, namespace, name string) (*v1.PersistentVolumeClaim, error)
	PersistentVolume(ctx context.Context, name string) (*v1.PersistentVolume, error)
	ServiceAccountToken(ctx context.Context, namespace, name string, r *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
}

// Node is what of the Node object bears on volumes.
type Node interface {
	// WaitRegistered returns the Node once the API server has it.
	WaitRegistered(ctx context.Context) (*v1.Node, error)
	// WaitReplaced waits until the API server has another Node than the one of this UID.
	WaitReplaced(ctx context.Context, uid types.UID) error
	// WaitAttached waits until the API server has been told that the volume is in use here, and says that it is attached.
	WaitAttached(ctx context.Context, volume v1.UniqueVolumeName) error
}

// Config is what a Manager works with.
type Config struct {
	Root    string // the kubelet's root directory
	Name    string // of the node
	Objects Objects
	Client  *cluster.Client // nil on a lone machine: nobody attaches volumes there
	Node    Node            // not used without a Client
	// InUseChanged is told that InUse returns something else now, and Wake that a driver which a pod waits for is there.
	InUseChanged func()
	Wake         func(uid types.UID)
	Event        func(p *v1.Pod, kind, reason, message string)
	CallTime     time.Duration // for one call of a driver; 0 for two minutes
	Log          *slog.Logger
}

// Manager knows the drivers of this node, and has them mount volumes. Its methods may run side by side.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	locks locks
	work  sync.WaitGroup // what Run has begun
	begun chan struct{}  // there is a volume to care for that is new

	nodeMu sync.Mutex // held while the drivers of the CSINode, and drivers, change

	mu      sync.Mutex
	drivers map[string][]*driver          // by name; of several the last one is used
	waiting map[string]map[types.UID]bool // pods, by the driver that is not there
	inUse   map[volumeID]bool             // that are attached, or are to be
	staged  map[volumeID]bool             // by this process
	cared   map[place]*care               // published volumes of pods
}

// volumeID names a volume: a driver, and the handle that it gave it.
type volumeID struct{ driver, handle string }

// unique is how the control plane names a volume.
func (v volumeID) unique() v1.UniqueVolumeName {
	return v1.UniqueVolumeName("kubernetes.io/csi/" + v.driver + "^" + v.handle)
}

// place is where a pod has a volume: name is that of its directory.
type place struct {
	uid  types.UID
	name string
}

// New makes a Manager that knows what an earlier one left on disk.
func New(cfg Config) (*Manager, error) {
	if cfg.CallTime == 0 {
		cfg.CallTime = callTime
	}
	m := &Manager{
		cfg: cfg, log: cfg.Log, locks: locks{held: map[string]chan struct{}{}},
		begun: make(chan struct{}, 1), drivers: map[string][]*driver{}, waiting: map[string]map[types.UID]bool{},
		inUse: map[volumeID]bool{}, staged: map[volumeID]bool{}, cared: map[place]*care{},
	}
	return m, m.recall()
}

// Run follows drivers, and takes care of the volumes of pods that run, until ctx ends. Volumes stay as they are.
func (m *Manager) Run(ctx context.Context) error {
	defer m.work.Wait()
	m.work.Go(func() { m.careForAll(ctx) })
	if m.cfg.Client != nil {
		n, err := m.makeCSINode(ctx)
		if err != nil {
			return nil // ctx ended first
		}
		m.work.Go(func() { m.followNode(ctx, n) })
	}
	return m.followSockets(ctx)
}

// InUse are the volumes that must not be detached from this node, in order.
func (m *Manager) InUse() []v1.UniqueVolumeName {
	m.mu.Lock()
	defer m.mu.Unlock()
	return sortedNames(m.inUse)
}

// Stats are what a volume holds, as its driver told last; false if it does not tell.
func (m *Manager) Stats(uid types.UID, name string) (stats.FsStats, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.cared[place{uid, name}]
	if c == nil || c.stats == nil {
		return stats.FsStats{}, false
	}
	return *c.stats, true
}

// Places on disk, which are kubelet's.

const pluginName = "kubernetes.io~csi" // as directories of pods have it

// volumeDir holds the record of a pod's volume, and the volume itself as "mount".
func (m *Manager) volumeDir(p place) string {
	return filepath.Join(m.cfg.Root, "pods", string(p.uid), "volumes", pluginName, p.name)
}

const mountName = "mount"

// stageRoot has a directory for each driver, with one for each volume that is staged, and one more: volumeDevices.
func (m *Manager) stageRoot() string {
	return filepath.Join(m.cfg.Root, "plugins", "kubernetes.io", "csi")
}

// stageDir holds the record of a staged volume, and the place where the driver stages it as "globalmount".
func (m *Manager) stageDir(v volumeID) string {
	return filepath.Join(m.stageRoot(), v.driver, sha256Hex(v.handle))
}

const globalMountName = "globalmount"

// registryDir is where drivers put the sockets by which they register.
func (m *Manager) registryDir() string { return filepath.Join(m.cfg.Root, "plugins_registry") }
