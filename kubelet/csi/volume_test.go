package csi

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/test/kernel"
)

// TestAttach waits for the control plane, which is told before that the volume is in use, and passes on what it says.
func TestAttach(t *testing.T) {
	s := start(t, stages)
	s.driverObject(func(spec *storagev1.CSIDriverSpec) { spec.AttachRequired = nil })
	s.run()
	v := volumeOf("a", "v")
	name := volumeID{driverName, "v"}.unique()
	ended := make(chan error)
	go func() {
		_, err := s.Publish(t.Context(), v)
		ended <- err
	}()
	s.until("the volume is in use", func() bool { return slices.Contains(s.InUse(), name) })
	s.asked()
	s.attach(v, map[string]string{"lun": "3"})
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	stage := s.driver.Calls("NodeStageVolume")[0].Request.(*csi.NodeStageVolumeRequest)
	publish := s.driver.Calls("NodePublishVolume")[0].Request.(*csi.NodePublishVolumeRequest)
	if stage.PublishContext["lun"] != "3" || publish.PublishContext["lun"] != "3" {
		t.Errorf("the driver was told %v, %v", stage.PublishContext, publish.PublishContext)
	}
	s.unpublish("a")
	s.nothingLeft()

	w := volumeOf("b", "w")
	s.attach(w, nil)
	s.server.Set(&storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: attachmentName(volumeID{driverName, "w"}, "node")},
		Status:     storagev1.VolumeAttachmentStatus{AttachError: &storagev1.VolumeError{Message: "no such disk"}},
	})
	if _, err := s.Publish(t.Context(), w); err == nil || err.Error() != `MountVolume.WaitForAttach failed for volume "pv-w" : no such disk` {
		t.Errorf("of a volume that can't be attached: %v", err)
	}
	s.unpublish("b")
	s.nothingLeft()
}

// TestFSGroup is by the driver's policy, and not at all by a driver that does it itself.
func TestFSGroup(t *testing.T) {
	kernel.Require(t, kernel.Root)
	only := func(p storagev1.FSGroupPolicy) *storagev1.FSGroupPolicy { return &p }
	for name, tt := range map[string]struct {
		policy *storagev1.FSGroupPolicy
		change func(v *Volume)
		able   []csi.NodeServiceCapability_RPC_Type
		set    bool
		told   string
	}{
		"default":           {set: true},
		"none":              {policy: only(storagev1.NoneFSGroupPolicy)},
		"many pods":         {change: func(v *Volume) { v.PV.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteMany} }},
		"no fsType":         {change: func(v *Volume) { v.PV.Spec.CSI.FSType = "" }},
		"file, many pods":   {policy: only(storagev1.FileFSGroupPolicy), change: func(v *Volume) { v.PV.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteMany} }, set: true},
		"read-only":         {policy: only(storagev1.FileFSGroupPolicy), change: func(v *Volume) { v.ReadOnly = true }},
		"no group":          {change: func(v *Volume) { v.Pod.Spec.SecurityContext = nil }},
		"driver does it":    {able: []csi.NodeServiceCapability_RPC_Type{csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP}, told: "2000"},
		"driver, and group": {able: []csi.NodeServiceCapability_RPC_Type{csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP}, change: func(v *Volume) { v.Pod.Spec.SecurityContext = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, append(tt.able, stages)...)
			s.driverObject(func(spec *storagev1.CSIDriverSpec) { spec.FSGroupPolicy = tt.policy })
			s.run()
			v, set := volumeOf("a", "v"), ""
			v.Pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: new(int64(2000))}
			v.SetGroup = func(dir string) error { set = dir; return nil }
			if tt.change != nil {
				tt.change(&v)
			}
			path := s.publish(v)
			if (set == path) != tt.set {
				t.Errorf("group set at %q, want %t", set, tt.set)
			}
			stage := s.driver.Calls("NodeStageVolume")[0].Request.(*csi.NodeStageVolumeRequest).VolumeCapability.GetMount().VolumeMountGroup
			publish := s.driver.Calls("NodePublishVolume")[0].Request.(*csi.NodePublishVolumeRequest)
			if got := publish.VolumeCapability.GetMount().VolumeMountGroup; got != tt.told || stage != tt.told {
				t.Errorf("the driver was told the group %q and %q, want %q", stage, got, tt.told)
			}
			if publish.Readonly != v.ReadOnly {
				t.Errorf("read-only: %t", publish.Readonly)
			}
		})
	}
}

func inline(v *v1.CSIVolumeSource) Volume {
	v.Driver = driverName
	return Volume{Pod: podNamed("a"), Name: "scratch", Inline: v}
}

// TestInline is published with the pod's name, a secret and tokens, if its driver wants these, and never staged or attached.
func TestInline(t *testing.T) {
	s := start(t, stages)
	s.server.Set(&v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "key"}, Data: map[string][]byte{"password": []byte("xyzzy")}})
	v := inline(&v1.CSIVolumeSource{
		FSType: new("ext4"), VolumeAttributes: map[string]string{"size": "small"}, NodePublishSecretRef: &v1.LocalObjectReference{Name: "key"},
	})
	s.run()
	if _, err := s.Publish(t.Context(), v); err == nil || !strings.Contains(err.Error(), "has no inline volumes") {
		t.Errorf("without a CSIDriver object: %v", err)
	}
	s.driverObject(func(spec *storagev1.CSIDriverSpec) { spec.AttachRequired, spec.PodInfoOnMount = nil, new(true) })
	path := s.publish(v)
	publish := s.driver.Calls("NodePublishVolume")[0].Request.(*csi.NodePublishVolumeRequest)
	want := map[string]string{
		"size": "small", "csi.storage.k8s.io/pod.name": "pod-a", "csi.storage.k8s.io/pod.namespace": "ns", "csi.storage.k8s.io/pod.uid": "a",
		"csi.storage.k8s.io/serviceAccount.name": "robot", "csi.storage.k8s.io/ephemeral": "true",
	}
	if diff := cmp.Diff(want, publish.VolumeContext); diff != "" {
		t.Error(diff)
	}
	if publish.Secrets["password"] != "xyzzy" || publish.TargetPath != path || publish.VolumeId != "csi-"+sha256Hex("ascratch") {
		t.Errorf("the driver was asked for %v", publish)
	}
	if len(v.Inline.VolumeAttributes) != 1 {
		t.Errorf("the pod's attributes were changed: %v", v.Inline.VolumeAttributes)
	}
	s.asked("NodePublishVolume")
	if use := s.InUse(); len(use) > 0 {
		t.Errorf("in use: %v", use)
	}
	s.unpublish("a")
	s.asked("NodeUnpublishVolume")
	s.nothingLeft()

	if err := s.client.Secrets.In("ns").Delete(t.Context(), "key", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Publish(t.Context(), v); err == nil || !strings.Contains(err.Error(), "secret ns/key") {
		t.Errorf("without its secret: %v", err)
	}
	s.unpublish("a")
	s.asked() // it was never asked
	s.nothingLeft()
}

// TestDevice is staged once, and is a link to what the driver made for the pod.
func TestDevice(t *testing.T) {
	s := start(t, stages)
	s.driverObject(nil)
	s.run()
	block := v1.PersistentVolumeBlock
	a, b := volumeOf("a", "v"), volumeOf("b", "v")
	a.PV.Spec.VolumeMode = &block
	b.PV = a.PV
	path := s.publish(a)
	if want := filepath.Join(s.cfg.Root, "pods/a/volumeDevices/kubernetes.io~csi/pv-v"); path != want || !isDevice(path) {
		t.Errorf("at %s (a device: %t), want %s", path, isDevice(path), want)
	}
	publish := s.driver.Calls("NodePublishVolume")[0].Request.(*csi.NodePublishVolumeRequest)
	if want := filepath.Join(s.cfg.Root, "plugins/kubernetes.io/csi/volumeDevices/publish/pv-v/a"); publish.TargetPath != want || publish.VolumeCapability.GetBlock() == nil {
		t.Errorf("the driver was asked for %v, want %s", publish, want)
	}
	s.publish(a)
	s.publish(b)
	s.asked("NodeStageVolume", "NodePublishVolume", "NodePublishVolume")
	s.restart(s.cfg.Root)
	s.driver.Stop()
	s.run()
	s.publish(a)
	if err := s.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	s.asked()
	s.unpublish("a")
	s.asked("NodeUnpublishVolume")
	s.unpublish("b")
	s.asked("NodeUnpublishVolume", "NodeUnstageVolume")
	s.nothingLeft()
	for _, dir := range []string{"publish/pv-v", "staging/pv-v", "pv-v"} {
		if _, err := os.Lstat(filepath.Join(s.deviceRoot(), dir)); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", dir, err)
		}
	}
}

// TestDeviceRefused leaves nothing of a device that its driver does not know, whether it stages or not. One that it may have
// made is undone.
func TestDeviceRefused(t *testing.T) {
	block := v1.PersistentVolumeBlock
	for _, tt := range []struct {
		able   []csi.NodeServiceCapability_RPC_Type
		code   codes.Code
		step   string
		undone []string
	}{
		{[]csi.NodeServiceCapability_RPC_Type{stages}, codes.InvalidArgument, "MapVolume.SetUpDevice", nil},
		{[]csi.NodeServiceCapability_RPC_Type{stages}, codes.Unavailable, "MapVolume.SetUpDevice", []string{"NodeUnpublishVolume", "NodeUnstageVolume"}},
		{nil, codes.InvalidArgument, "MapVolume.MapPodDevice", nil},
		{nil, codes.Unavailable, "MapVolume.MapPodDevice", []string{"NodeUnpublishVolume"}},
	} {
		s := start(t, tt.able...)
		s.driverObject(func(spec *storagev1.CSIDriverSpec) { spec.AttachRequired = nil })
		s.driver.Fault = func(_ context.Context, method string, _ bool) error {
			if method == "NodeStageVolume" || method == "NodePublishVolume" {
				return status.Error(tt.code, "broken by the test")
			}
			return nil
		}
		s.run()
		v := volumeOf("a", "v")
		v.PV.Spec.VolumeMode = &block
		s.attach(v, nil)
		if _, err := s.Publish(t.Context(), v); err == nil || !strings.HasPrefix(err.Error(), tt.step+` failed for volume "pv-v" : `) {
			t.Errorf("error is %v", err)
		}
		s.driver.Forget()
		s.unpublish("a")
		s.asked(tt.undone...)
		s.nothingLeft()
	}
}

// TestCare measures a volume, publishes it again and grows it, if its driver can and the volume needs it.
func TestCare(t *testing.T) {
	s := start(t, stages, csi.NodeServiceCapability_RPC_GET_VOLUME_STATS, csi.NodeServiceCapability_RPC_EXPAND_VOLUME)
	s.driverObject(func(spec *storagev1.CSIDriverSpec) { spec.RequiresRepublish = new(true) })
	v := volumeOf("a", "v")
	s.server.Set(v.PV, &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim"}, Status: v1.PersistentVolumeClaimStatus{
		Capacity:   v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")},
		Conditions: []v1.PersistentVolumeClaimCondition{{Type: v1.PersistentVolumeClaimFileSystemResizePending, Status: v1.ConditionTrue}},
	}})
	s.run()
	s.publish(v)
	var got stats.FsStats
	s.until("it is measured", func() (ok bool) {
		got, ok = s.Stats("a", "pv-v")
		return ok
	})
	if *got.UsedBytes != 400 || *got.CapacityBytes != 1000 || *got.AvailableBytes != 600 || *got.InodesUsed != 1 {
		t.Errorf("stats %+v", got)
	}
	c := s.cared[place{"a", "pv-v"}]
	s.until("it is not busy", func() bool { s.Manager.mu.Lock(); defer s.Manager.mu.Unlock(); return !c.busy })
	s.asked("NodeStageVolume", "NodePublishVolume")
	s.careFor(t.Context(), c)
	s.asked("NodePublishVolume")

	bigger := v.PV.DeepCopy()
	bigger.Spec.Capacity[v1.ResourceStorage] = resource.MustParse("2Gi")
	s.server.Set(bigger)
	s.careFor(t.Context(), c)
	s.asked("NodePublishVolume", "NodeExpandVolume")
	if size := s.driver.Size("v"); size != 2<<30 {
		t.Errorf("it has grown to %d bytes", size)
	}
	claim := s.server.Objects("persistentvolumeclaims")[0].(*v1.PersistentVolumeClaim).Status
	if size := claim.Capacity[v1.ResourceStorage]; size.String() != "2Gi" || len(claim.Conditions) > 0 {
		t.Errorf("the claim's status is %+v", claim)
	}
	if !slices.Equal(s.told, []string{"FileSystemResizeSuccessful"}) {
		t.Errorf("events %v", s.told)
	}
	s.careFor(t.Context(), c)
	s.asked("NodePublishVolume")

	s.unpublish("a")
	if _, ok := s.Stats("a", "pv-v"); ok {
		t.Error("what is gone has stats")
	}
	s.driver.Forget()
	s.careFor(t.Context(), c) // that was late
	s.asked()
	s.nothingLeft()
}

// TestRepublishFails leaves what the pod sees.
func TestRepublishFails(t *testing.T) {
	s := start(t)
	s.driverObject(func(spec *storagev1.CSIDriverSpec) { spec.RequiresRepublish = new(true) })
	s.run()
	path := s.publish(volumeOf("a", "v"))
	write(t, filepath.Join(path, "file"), "text")
	c := s.cared[place{"a", "pv-v"}]
	s.until("it is looked at", func() bool { s.Manager.mu.Lock(); defer s.Manager.mu.Unlock(); return c.old })
	c.request.publishSecret = &v1.SecretReference{Namespace: "ns", Name: "none"}
	if err := s.publishAgain(t.Context(), s.drivers[driverName][0], c); err == nil {
		t.Error("published again without its secret")
	}
	if data, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(data) != "text" {
		t.Errorf("the pod reads %q, %v", data, err)
	}
}

// TestTokens are given in the way that the CSIDriver asks for.
func TestTokens(t *testing.T) {
	for _, inSecrets := range []bool{false, true} {
		r := &request{Volume: Volume{Pod: podNamed("a")}, policy: policy{tokens: []storagev1.TokenRequest{{Audience: "vault"}}, tokensInSecrets: inSecrets}}
		m := &Manager{cfg: Config{Objects: tokenGiver{}}}
		attributes, secrets, err := m.publishWith(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		given, other := attributes, secrets
		if inSecrets {
			given, other = secrets, attributes
		}
		tokens := map[string]struct{ Token string }{}
		if err := json.Unmarshal([]byte(given["csi.storage.k8s.io/serviceAccount.tokens"]), &tokens); err != nil || tokens["vault"].Token != "for robot of a" || len(other) > 0 {
			t.Errorf("in secrets: %t: attributes %v, secrets %v, %v", inSecrets, attributes, secrets, err)
		}
	}
}

// tokenGiver has nothing but tokens.
type tokenGiver struct{ Objects }

func (tokenGiver) ServiceAccountToken(_ context.Context, _, name string, r *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	r.Status.Token = "for " + name + " of " + string(r.Spec.BoundObjectRef.UID)
	return r, nil
}
