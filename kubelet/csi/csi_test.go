package csi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/kubelet/mount"
)

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
