// Package volume makes the volumes of pods, shows them to containers and removes them. On disk they lie where kubelet has
// them too: pods/UID/volumes/kubernetes.io~KIND/NAME below the kubelet's root directory.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/csi"
	"github.com/orlop/orlop/kubelet/mount"
)

// Objects gets what volumes are made of.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
	ServiceAccountToken(ctx context.Context, namespace, name string, r *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
	PersistentVolumeClaim(ctx context.Context, namespace, name string) (*v1.PersistentVolumeClaim, error)
	PersistentVolume(ctx context.Context, name string) (*v1.PersistentVolume, error)
}

// Config is what a Manager works with.
type Config struct {
	Root        string // the kubelet's root directory
	Objects     Objects
	CSI         *csi.Manager
	Allocatable func() v1.ResourceList // what a limit is that a container does not set
	// RecursiveReadOnly tells whether a runtime handler can make a mount and all below it read-only (KEP-3857).
	RecursiveReadOnly func(runtimeClass *string) bool
	Log               *slog.Logger
}

// UnsupportedError is a volume of a kind that this kubelet does not have.
type UnsupportedError struct{ Volume, Kind string }

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("volume %s: kind %s is not supported here; use a persistentVolumeClaim of a supported kind, or another volume", e.Volume, e.Kind)
}

// Manager keeps the volumes of all pods. Its methods may run side by side for different pods.
type Manager struct {
	cfg    Config
	tokens tokens
	usage  measured

	mu   sync.Mutex
	pods map[types.UID]map[string]made // by volume
}

// made is a volume that is there.
type made struct {
	kind     string              // of its directory: "configmap", "empty-dir", …; "" if it has none below the pod's
	path     string              // on the node; "" for an image and a device
	device   string              // a block device
	name     string              // of its directory, if its kind is "csi"
	claim    *stats.PVCReference // nil for one without a claim
	readOnly bool                // for all who mount it
	relabel  bool                // it is the pod's own, and gets the pod's SELinux label
	image    string              // an image volume's reference
}

// New makes a Manager.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, tokens: tokens{known: map[tokenKey]token{}}, usage: measured{known: map[string]stats.FsStats{}}, pods: map[types.UID]map[string]made{}}
}

func (m *Manager) podDir(uid types.UID) string { return filepath.Join(m.cfg.Root, "pods", string(uid)) }

func (m *Manager) dir(uid types.UID, kind, name string) string {
	return filepath.Join(m.podDir(uid), "volumes", "kubernetes.io~"+kind, name)
}

// Setup makes the pod's volumes, or brings the contents of those that are there up to date. What can't be made now, such as
// a volume of a Secret that does not exist yet, is an error, and Setup may be called again.
func (m *Manager) Setup(ctx context.Context, p *v1.Pod) error {
	var errs []error
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if done, known := m.get(p.UID, v.Name); known && !refreshed(v) && m.present(done) {
			continue
		}
		volume, err := m.make(ctx, p, v)
		if err != nil {
			errs = append(errs, stepOf(v.Name, err))
			continue
		}
		m.put(p.UID, v.Name, volume)
	}
	return errors.Join(errs...)
}

// stepOf names the step that failed, if that was not done.
func stepOf(volume string, err error) error {
	var step *csi.StepError
	if errors.As(err, &step) {
		return err
	}
	return &csi.StepError{Step: "MountVolume.SetUp", Volume: volume, Err: err}
}

// refreshed is true for kinds whose content changes while the pod runs.
func refreshed(v *v1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

func (m *Manager) present(v made) bool {
	if v.image != "" || v.kind == csiKind { // a driver's file system may hang whoever looks at it
		return true
	}
	_, err := os.Stat(v.path + v.device) // one of them
	return err == nil
}

func (m *Manager) get(uid types.UID, name string) (made, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.pods[uid][name]
	return v, ok
}

func (m *Manager) put(uid types.UID, name string, v made) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods[uid] == nil {
		m.pods[uid] = map[string]made{}
	}
	m.pods[uid][name] = v
}

func (m *Manager) make(ctx context.Context, p *v1.Pod, v *v1.Volume) (made, error) {
	switch {
	case v.EmptyDir != nil:
		return m.emptyDir(p, v)
	case v.HostPath != nil:
		return m.hostPath(v.HostPath)
	case v.Image != nil:
		return made{image: v.Image.Reference, readOnly: true}, nil
	case v.PersistentVolumeClaim != nil, v.Ephemeral != nil:
		return m.claim(ctx, p, v)
	case v.CSI != nil:
		return m.inline(ctx, p, v)
	case refreshed(v):
		return m.content(ctx, p, v)
	}
	return made{}, &UnsupportedError{v.Name, kindOf(v)}
}

// kindOf names the field that is set, as a manifest has it.
func kindOf(v *v1.Volume) string {
	for kind, set := range map[string]bool{
		"nfs": v.NFS != nil, "iscsi": v.ISCSI != nil, "fc": v.FC != nil,
		"flexVolume": v.FlexVolume != nil, "portworxVolume": v.PortworxVolume != nil,
	} {
		if set {
			return kind
		}
	}
	return "unknown"
}

// TearDown removes a pod's volumes and its whole directory. It succeeds if there is none. What is mounted is unmounted
// first, and nothing is removed while a mount is left, since behind it may lie somebody's data.
func (m *Manager) TearDown(ctx context.Context, uid types.UID) error {
	dir := m.podDir(uid)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		m.forget(uid)
		return nil
	}
	if err := mount.UnmountBelow(filepath.Join(dir, subPaths)); err != nil { // which keep volumes busy
		return err
	}
	if err := m.cfg.CSI.Unpublish(ctx, uid); err != nil {
		return err
	}
	if err := mount.UnmountBelow(dir); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove pod directory: %w", err)
	}
	m.forget(uid)
	return nil
}

func (m *Manager) forget(uid types.UID) {
	m.mu.Lock()
	delete(m.pods, uid)
	m.mu.Unlock()
	m.tokens.forget(uid)
	m.usage.forget(m.podDir(uid))
}

// Orphans tears down the volumes of pods that nobody knows, and those that no pod has.
func (m *Manager) Orphans(ctx context.Context, known map[types.UID]bool) error {
	entries, err := os.ReadDir(filepath.Join(m.cfg.Root, "pods"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if uid := types.UID(e.Name()); !known[uid] && !strings.HasPrefix(e.Name(), ".") {
			errs = append(errs, m.TearDown(ctx, uid))
		}
	}
	return errors.Join(append(errs, m.cfg.CSI.Sweep(ctx))...)
}
