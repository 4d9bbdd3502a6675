package csi

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/kubelet/cluster"
	"github.com/orlop/orlop/kubelet/mount"
	"github.com/orlop/orlop/kubelet/objects"
	"github.com/orlop/orlop/test/csidriver"
	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

const (
	driverName = "test.csi.orlop.dev"
	patience   = 20 * time.Second
	stages     = csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME
)

// stand is a Manager with an API server and a driver.
type stand struct {
	*Manager
	t      *testing.T
	server *kubetest.Server
	client *cluster.Client
	driver *csidriver.Driver
	objs   *objects.API

	mu       sync.Mutex
	attached map[v1.UniqueVolumeName]bool
	woken    []types.UID
	told     []string // reasons of events
}

// start makes all of it; the driver is not started. adjust may change the driver before.
func start(t *testing.T, able ...csi.NodeServiceCapability_RPC_Type) *stand {
	t.Helper()
	kernel.Require(t, kernel.Root)
	root, err := os.MkdirTemp("", "csi-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	s := &stand{t: t, server: kubetest.New(t), attached: map[v1.UniqueVolumeName]bool{}}
	s.server.Set(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "node-uid", Labels: map[string]string{"zone": "a"}}})
	if s.client, err = cluster.New(s.server.Client(t, "")); err != nil {
		t.Fatal(err)
	}
	s.objs = objects.FromAPI(s.client, func(types.UID) {})
	s.background(func(ctx context.Context) { s.objs.Run(ctx) })
	s.driver = csidriver.New(csidriver.Options{
		Name: driverName, Registry: filepath.Join(root, "plugins_registry"), Dir: filepath.Join(root, "plugins", driverName), Able: able,
		Topology: map[string]string{"zone": "a", "rack": "7"}, Max: 5,
	})
	t.Cleanup(func() {
		s.driver.Stop()
		if err := mount.UnmountBelow(root); err != nil { // before what is mounted is removed
			t.Error(err)
			return
		}
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	s.restart(root)
	return s
}

// background runs something until the test ends, and waits for it.
func (s *stand) background(run func(ctx context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); run(ctx) }()
	stop = func() { cancel(); <-ended }
	s.t.Cleanup(stop)
	return stop
}

// restart makes a new Manager over what the old one left on disk.
func (s *stand) restart(root string) {
	s.t.Helper()
	m, err := New(Config{
		Root: root, Name: "node", Objects: s.objs, Client: s.client, Node: s, InUseChanged: func() {}, Wake: s.wake,
		Event: func(_ *v1.Pod, _, reason, _ string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.told = append(s.told, reason)
		},
		CallTime: 2 * time.Second, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.Manager = m
}

// run has the Manager follow drivers, starts the driver, and waits until it is registered.
func (s *stand) run() (stop func()) {
	s.t.Helper()
	m := s.Manager
	stop = s.background(func(ctx context.Context) {
		if err := m.Run(ctx); err != nil {
			s.t.Error(err)
		}
	})
	if err := s.driver.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.registered()
	return stop
}

func (s *stand) registered() {
	s.t.Helper()
	s.until("the driver is registered", func() bool {
		_, err := s.Manager.driver(driverName)
		return err == nil
	})
}

func (s *stand) until(what string, ok func() bool) {
	s.t.Helper()
	limit, tick := time.After(patience), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			s.t.Fatalf("waited %s until %s; the driver was asked for %v", patience, what, s.driver.Order())
		}
	}
}

func (s *stand) wake(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.woken = append(s.woken, uid)
}

// WaitRegistered is the Node's.
func (s *stand) WaitRegistered(context.Context) (*v1.Node, error) {
	return s.node(), nil
}

// WaitReplaced is the Node's.
func (s *stand) WaitReplaced(ctx context.Context, uid types.UID) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.node().UID != uid {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// WaitAttached is the Node's.
func (s *stand) WaitAttached(ctx context.Context, name v1.UniqueVolumeName) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		is := s.attached[name]
		s.mu.Unlock()
		if is && slices.Contains(s.InUse(), name) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// driverObject is the CSIDriver: volumes are not attached unless change says so.
func (s *stand) driverObject(change func(spec *storagev1.CSIDriverSpec)) {
	s.t.Helper()
	o := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: driverName}, Spec: storagev1.CSIDriverSpec{
		AttachRequired: new(false), VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral},
	}}
	if change != nil {
		change(&o.Spec)
	}
	s.server.Set(o)
	s.until("the CSIDriver is seen", func() bool {
		seen, err := s.objs.CSIDriver(context.Background(), driverName)
		return err == nil && cmp.Equal(seen.Spec, o.Spec)
	})
}

func podNamed(uid types.UID) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod-" + string(uid), Namespace: "ns", UID: uid}, Spec: v1.PodSpec{ServiceAccountName: "robot"}}
}

// volumeOf is one of a pod that is bound to a PersistentVolume of the driver.
func volumeOf(uid types.UID, handle string) Volume {
	return Volume{Pod: podNamed(uid), Name: "pv-" + handle, Claim: "claim", PV: &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-" + handle}, Spec: v1.PersistentVolumeSpec{
			Capacity:    v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")},
			AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}, MountOptions: []string{"noatime"},
			PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{
				Driver: driverName, VolumeHandle: handle, FSType: "ext4", VolumeAttributes: map[string]string{"color": "red"},
			}},
		},
	}}
}

func (s *stand) publish(v Volume) string {
	s.t.Helper()
	path, err := s.Publish(s.t.Context(), v)
	if err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *stand) unpublish(uid types.UID) {
	s.t.Helper()
	if err := s.Unpublish(s.t.Context(), uid); err != nil {
		s.t.Fatal(err)
	}
}

// asked is what the driver was asked for since the last time.
func (s *stand) asked(want ...string) {
	s.t.Helper()
	if diff := cmp.Diff(want, s.driver.Order()); diff != "" {
		s.t.Errorf("the driver was asked for (-want +got):\n%s", diff)
	}
	s.driver.Forget()
}

// nothingLeft: no record, no directory of a volume, no mount.
func (s *stand) nothingLeft() {
	s.t.Helper()
	for _, dir := range []string{filepath.Join(s.cfg.Root, "pods"), s.stageRoot()} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				s.t.Errorf("left: %s", path)
			}
			if mounted, _ := mount.Mounted(path); mounted {
				s.t.Errorf("mounted yet: %s", path)
			}
			return nil
		})
		if err != nil {
			s.t.Error(err)
		}
	}
	if use := s.InUse(); len(use) > 0 {
		s.t.Errorf("in use: %v", use)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
