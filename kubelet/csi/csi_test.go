package csi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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

// TestPublish stages a volume once for two pods, and unstages it after the last one.
func TestPublish(t *testing.T) {
	s := start(t, stages)
	s.driverObject(nil)
	s.run()
	first := s.publish(volumeOf("a", "v"))
	write(t, filepath.Join(first, "file"), "text")
	second := s.publish(volumeOf("b", "v"))
	if data, err := os.ReadFile(filepath.Join(second, "file")); err != nil || string(data) != "text" {
		t.Errorf("another pod reads %q, %v", data, err)
	}
	s.publish(volumeOf("a", "v")) // it is there
	if want := filepath.Join(s.cfg.Root, "pods", "a", "volumes", "kubernetes.io~csi", "pv-v", "mount"); first != want {
		t.Errorf("at %s, want %s", first, want)
	}
	stage := s.driver.Calls("NodeStageVolume")[0].Request.(*csi.NodeStageVolumeRequest)
	if want := filepath.Join(s.cfg.Root, "plugins/kubernetes.io/csi", driverName, sha256Hex("v"), "globalmount"); stage.StagingTargetPath != want {
		t.Errorf("staged at %s, want %s", stage.StagingTargetPath, want)
	}
	publish := s.driver.Calls("NodePublishVolume")[0].Request.(*csi.NodePublishVolumeRequest)
	got := []any{publish.VolumeId, publish.StagingTargetPath, publish.VolumeContext, publish.VolumeCapability.GetMount().GetFsType(),
		publish.VolumeCapability.GetMount().GetMountFlags(), publish.VolumeCapability.AccessMode.Mode, publish.Readonly}
	want := []any{"v", stage.StagingTargetPath, map[string]string{"color": "red"}, "ext4", []string{"noatime"}, csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	s.asked("NodeStageVolume", "NodePublishVolume", "NodePublishVolume")
	s.unpublish("a")
	s.asked("NodeUnpublishVolume")
	s.unpublish("b")
	s.asked("NodeUnpublishVolume", "NodeUnstageVolume")
	s.unpublish("b")
	s.asked()
	s.nothingLeft()
}

// TestRecord has kubelet's names, with strings as values, and kubelet's own records are understood.
func TestRecord(t *testing.T) {
	s := start(t, stages)
	s.driverObject(nil)
	s.run()
	dir := filepath.Dir(s.publish(volumeOf("a", "v")))
	data, err := os.ReadFile(filepath.Join(dir, "vol_data.json"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{} // as kubelet reads it
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "state")
	delete(got, "attach")
	want := map[string]string{
		"specVolID": "pv-v", "volumeHandle": "v", "driverName": driverName, "nodeName": "node", "volumeLifecycleMode": "Persistent",
		"attachmentID": "csi-" + sha256Hex("v"+driverName+"node"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for path, fields := range map[string]map[string]string{
		dir:                                   want,
		s.stageDir(volumeID{driverName, "v"}): {"volumeHandle": "v", "driverName": driverName},
	} {
		text, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(path, "vol_data.json"), string(text)+"\n")
	}
	s.driver.Forget()
	s.unpublish("a")
	s.asked("NodeUnpublishVolume", "NodeUnstageVolume")
	s.nothingLeft()
}

// TestBrokenRecord is one that a machine left which lost its power. While something is mounted beside it, nobody guesses.
func TestBrokenRecord(t *testing.T) {
	s := start(t, stages)
	s.driverObject(nil)
	stop := s.run()
	path := s.publish(volumeOf("a", "v"))
	s.publish(volumeOf("b", "w"))
	write(t, filepath.Join(filepath.Dir(path), recordName), "")
	if err := s.Unpublish(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("unpublished something: %v", err)
	}
	if err := mount.UnmountBelow(s.cfg.Root); err != nil {
		t.Fatal(err)
	}
	stop()
	s.driver.Stop()
	s.restart(s.cfg.Root)
	s.run()
	s.unpublish("b")
	s.publish(volumeOf("a", "v"))
	s.unpublish("a")
	s.nothingLeft()
}

// TestRestart leaves volumes that are there alone, and finds all others on disk.
func TestRestart(t *testing.T) {
	s := start(t, stages)
	s.driverObject(func(spec *storagev1.CSIDriverSpec) { spec.AttachRequired = nil })
	stop := s.run()
	v := volumeOf("a", "v")
	s.attach(v, nil)
	path := s.publish(v)
	s.asked("NodeStageVolume", "NodePublishVolume")
	stop()
	s.restart(s.cfg.Root)
	if diff := cmp.Diff([]v1.UniqueVolumeName{"kubernetes.io/csi/" + driverName + "^v"}, s.InUse()); diff != "" {
		t.Errorf("in use (-want +got):\n%s", diff)
	}
	if again := s.publish(v); again != path { // no driver is there yet
		t.Errorf("at %s, want %s", again, path)
	}
	s.driver.Stop()
	s.run()
	s.asked()
	if err := s.Sweep(t.Context()); err != nil { // somebody has it
		t.Error(err)
	}
	s.asked()
	if err := mount.UnmountBelow(filepath.Dir(path)); err != nil { // as a reboot does
		t.Fatal(err)
	}
	s.publish(v)
	s.asked("NodePublishVolume")
	s.unpublish("a")
	s.asked("NodeUnpublishVolume", "NodeUnstageVolume")
	s.nothingLeft()
}

// attach is what the control plane does.
func (s *stand) attach(v Volume, metadata map[string]string) {
	id := volumeID{driverName, v.PV.Spec.CSI.VolumeHandle}
	s.server.Set(&storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: attachmentName(id, "node")},
		Status:     storagev1.VolumeAttachmentStatus{Attached: true, AttachmentMetadata: metadata},
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attached[id.unique()] = true
}

// TestOrphan is a staged volume whose pod was forgotten between two steps.
func TestOrphan(t *testing.T) {
	s := start(t, stages)
	s.driverObject(nil)
	stop := s.run()
	dir := filepath.Dir(s.publish(volumeOf("a", "v")))
	if err := errors.Join(mount.UnmountBelow(dir), os.RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
	stop()
	s.driver.Stop()
	s.restart(s.cfg.Root)
	var absent *AbsentError
	if err := s.Sweep(t.Context()); !errors.As(err, &absent) {
		t.Errorf("swept without a driver: %v", err)
	}
	s.run()
	s.driver.Forget()
	if err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	s.asked("NodeUnstageVolume")
	s.nothingLeft()
}

// TestBrokenSteps: each step fails once, before and after it had its effect, and the next attempt makes it good, also that of
// another process.
func TestBrokenSteps(t *testing.T) {
	for _, method := range []string{"NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"} {
		for _, after := range []bool{false, true} {
			for _, killed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s after=%t killed=%t", method, after, killed), func(t *testing.T) { breakStep(t, method, after, killed) })
			}
		}
	}
}

func breakStep(t *testing.T, method string, after, killed bool) {
	s := start(t, stages)
	s.driverObject(nil)
	failed := false
	s.driver.Fault = func(_ context.Context, m string, is bool) error {
		if m == method && is == after && !failed {
			failed = true
			return status.Error(codes.Unavailable, "broken by the test")
		}
		return nil
	}
	stop := s.run()
	// again does something as often as it takes, which is twice at most.
	again := func(do func() error) {
		err := do()
		if err == nil {
			return
		}
		if want := "driver " + driverName + ": " + method + ": "; !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "broken by the test") {
			t.Errorf("error does not tell which driver and what: %v", err)
		}
		if killed {
			stop()
			s.driver.Stop()
			s.restart(s.cfg.Root)
			stop = s.run()
		}
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	again(func() error { _, err := s.Publish(t.Context(), volumeOf("a", "v")); return err })
	again(func() error { return s.Unpublish(t.Context(), "a") })
	again(func() error { return s.Sweep(t.Context()) })
	if !failed {
		t.Error("nothing was broken")
	}
	s.nothingLeft()
}

// TestHungDriver does not hold up its caller for longer than a call may take, nor the end of the pod.
func TestHungDriver(t *testing.T) {
	s := start(t, stages)
	s.driverObject(nil)
	var hang atomic.Bool
	hang.Store(true)
	s.driver.Fault = func(ctx context.Context, method string, after bool) error {
		if hang.Load() && method == "NodePublishVolume" && after {
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		}
		return nil
	}
	s.cfg.CallTime = 300 * time.Millisecond
	s.run()
	_, err := s.Publish(t.Context(), volumeOf("a", "v"))
	if err == nil || !strings.Contains(err.Error(), "DeadlineExceeded") {
		t.Fatalf("published by a driver that hangs: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Publish(ctx, volumeOf("a", "v")); err == nil {
		t.Error("published after its caller has given up")
	}
	s.unpublish("a") // the driver may have done it, so it is asked to undo it
	s.asked("NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume")
	s.nothingLeft()
	hang.Store(false)
	s.publish(volumeOf("a", "v"))
	s.unpublish("a")
	s.nothingLeft()
}

// TestRefused leaves nothing of a volume that its driver does not know, which it is not asked to undo then.
func TestRefused(t *testing.T) {
	s := start(t, stages)
	s.driverObject(nil)
	s.run()
	_, err := s.Publish(t.Context(), volumeOf("a", "refused"))
	want := `MountVolume.MountDevice failed for volume "pv-refused" : driver ` + driverName + `: NodeStageVolume: rpc error: code = InvalidArgument desc = this volume is refused`
	if err == nil || err.Error() != want {
		t.Errorf("error is %v\nwant %s", err, want)
	}
	s.asked("NodeStageVolume")
	s.unpublish("a")
	s.asked()
	s.nothingLeft()
}

// TestDriverDies in the middle, and the pod that waits is woken when it is back.
func TestDriverDies(t *testing.T) {
	s := start(t, stages)
	s.driverObject(nil)
	s.run()
	s.publish(volumeOf("a", "v"))
	s.driver.Stop()
	s.until("the driver is off the list", func() bool {
		_, err := s.Manager.driver(driverName)
		return err != nil
	})
	for _, err := range []error{s.Unpublish(t.Context(), "a"), func() error { _, err := s.Publish(t.Context(), volumeOf("b", "w")); return err }()} {
		if err == nil || !strings.Contains(err.Error(), "driver name "+driverName+" not found in the list of registered CSI drivers") {
			t.Errorf("without a driver: %v", err)
		}
	}
	if err := s.driver.Start(); err != nil {
		t.Fatal(err)
	}
	s.until("those who wait are woken", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.Contains(s.woken, "a") && slices.Contains(s.woken, "b")
	})
	s.publish(volumeOf("b", "w"))
	s.unpublish("a")
	s.unpublish("b")
	s.nothingLeft()
}

// TestReadWriteOncePod is for one pod.
func TestReadWriteOncePod(t *testing.T) {
	s := start(t, stages, csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER)
	s.driverObject(nil)
	stop := s.run()
	a, b := volumeOf("a", "v"), volumeOf("b", "v")
	a.PV.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}
	b.PV = a.PV
	s.publish(a)
	if mode := s.driver.Calls("NodePublishVolume")[0].Request.(*csi.NodePublishVolumeRequest).VolumeCapability.AccessMode.Mode; mode != csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER {
		t.Errorf("access mode %s", mode)
	}
	if _, err := s.Publish(t.Context(), b); err == nil || !strings.Contains(err.Error(), "already in use by another pod") {
		t.Errorf("a second pod has it: %v", err)
	}
	if err := mount.UnmountBelow(s.cfg.Root); err != nil { // as a reboot does
		t.Fatal(err)
	}
	stop()
	s.driver.Stop()
	s.restart(s.cfg.Root)
	s.run()
	s.publish(a) // who had it before, though the other one wants it
	s.unpublish("a")
	s.publish(b)
	s.unpublish("b")
	s.nothingLeft()
}
