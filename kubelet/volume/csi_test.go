package volume

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/csi"
	"github.com/orlop/orlop/kubelet/mount"
	"github.com/orlop/orlop/test/csidriver"
	"github.com/orlop/orlop/test/kernel"
)

const driverName = "test.csi.orlop.dev"

// alone is a lone machine with a driver, a PersistentVolume and its claim "data", and another pair "raw" of a device.
func alone(t *testing.T) (*Manager, *objects, *csidriver.Driver) {
	t.Helper()
	kernel.Require(t, kernel.Root)
	root, err := os.MkdirTemp("", "volume-") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	block := v1.PersistentVolumeBlock
	o := &objects{
		drivers: map[string]*storagev1.CSIDriver{driverName: {Spec: storagev1.CSIDriverSpec{FSGroupPolicy: new(storagev1.FileFSGroupPolicy)}}},
		claims:  map[string]*v1.PersistentVolumeClaim{"data": claimFor("data"), "raw": claimFor("raw"), "p-work": claimFor("data")},
		volumes: map[string]*v1.PersistentVolume{"pv-data": volumeFor("data", nil), "pv-raw": volumeFor("raw", &block)},
	}
	drivers, err := csi.New(csi.Config{
		Root: root, Name: "node", Objects: o, InUseChanged: func() {}, Wake: func(types.UID) {}, CallTime: 5 * time.Second, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	d := csidriver.New(csidriver.Options{
		Name: driverName, Registry: filepath.Join(root, "plugins_registry"), Dir: filepath.Join(root, "plugins", driverName),
		Able: []spec.NodeServiceCapability_RPC_Type{spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME},
	})
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- drivers.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, mount.UnmountBelow(root)); err != nil {
			t.Error(err)
			return
		}
		d.Stop()
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	return New(Config{Root: root, Objects: o, CSI: drivers, Log: slog.New(slog.DiscardHandler), RecursiveReadOnly: func(*string) bool { return false }}), o, d
}

func claimFor(name string) *v1.PersistentVolumeClaim {
	return &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: name, UID: types.UID(name)}, Spec: v1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name}}
}

func volumeFor(name string, mode *v1.PersistentVolumeMode) *v1.PersistentVolume {
	return &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: v1.PersistentVolumeSpec{
		VolumeMode: mode, Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")},
		ClaimRef:               &v1.ObjectReference{Namespace: "n", Name: name, UID: types.UID(name)},
		PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: driverName, VolumeHandle: name}},
	}}
}

func claimed(name, claim string) v1.Volume {
	return volume(name, v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: claim}})
}

func setUp(t *testing.T, m *Manager, p *v1.Pod) {
	t.Helper()
	withDriver(t, func() error { return m.Setup(t.Context(), p) })
}

// withDriver does something until the driver has registered.
func withDriver(t *testing.T, do func() error) {
	t.Helper()
	limit, tick := time.After(10*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		err := do()
		var absent *csi.AbsentError
		switch {
		case err == nil:
			return
		case !errors.As(err, &absent):
			t.Fatal(err)
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal(err)
		}
	}
}

// TestCSI is a claim bound to a driver's volume, of which a part is mounted, and a device.
func TestCSI(t *testing.T) {
	m, _, d := alone(t)
	p := podWith(claimed("a", "data"), claimed("b", "raw"))
	p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: new(int64(2000))}
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "a", MountPath: "/a"}, {Name: "a", MountPath: "/sub", SubPath: "x/y"}}
	p.Spec.Containers[0].VolumeDevices = []v1.VolumeDevice{{Name: "b", DevicePath: "/dev/b"}}
	setUp(t, m, p)
	mounts, err := m.Mounts(p, &p.Spec.Containers[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(m.cfg.Root, "pods/u/volumes/kubernetes.io~csi/pv-data/mount"); mounts[0].HostPath != want || mounts[0].Readonly {
		t.Errorf("mount %v, want %s", mounts[0], want)
	}
	if err := os.WriteFile(filepath.Join(mounts[1].HostPath, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(d.Volume("data"), "x/y/file")); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(d.Volume("data")); err != nil || ownerOf(info).gid != 2000 {
		t.Errorf("the volume is not the group's: %v, %v", info, err)
	}
	devices, err := m.Devices(p, &p.Spec.Containers[0])
	if err != nil || len(devices) != 1 || devices[0].ContainerPath != "/dev/b" || devices[0].Permissions != "mrw" {
		t.Errorf("devices %v, %v", devices, err)
	} else if info, err := os.Stat(devices[0].HostPath); err != nil || info.Mode()&os.ModeDevice == 0 {
		t.Errorf("%s is %v, %v", devices[0].HostPath, info, err)
	}
	if err := m.Orphans(t.Context(), map[types.UID]bool{"u": true}); err != nil {
		t.Error(err)
	}
	if len(d.Calls("NodeUnpublishVolume")) > 0 {
		t.Error("unpublished while its pod runs")
	}
	if err := m.Orphans(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if n, u := len(d.Calls("NodeUnpublishVolume")), len(d.Calls("NodeUnstageVolume")); n != 2 || u != 2 {
		t.Errorf("unpublished %d times, unstaged %d times; want 2 each", n, u)
	}
	if _, err := os.Stat(filepath.Join(m.cfg.Root, "pods/u")); !os.IsNotExist(err) {
		t.Errorf("the pod's directory is there (%v)", err)
	}
	if _, err := os.Stat(filepath.Join(d.Volume("data"), "x/y/file")); err != nil {
		t.Errorf("the data is gone: %v", err)
	}
}

// TestNoDriverAtTheEnd: nothing of a volume is removed while its driver is away.
func TestNoDriverAtTheEnd(t *testing.T) {
	m, _, d := alone(t)
	p := podWith(claimed("a", "data"))
	setUp(t, m, p)
	file := filepath.Join(d.Volume("data"), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.Stop()
	if err := m.TearDown(t.Context(), "u"); err == nil || !strings.Contains(err.Error(), driverName) {
		t.Errorf("torn down without a driver: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the data is gone: %v", err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	withDriver(t, func() error { return m.TearDown(t.Context(), "u") })
	if n := len(d.Calls("NodeUnpublishVolume")); n != 1 {
		t.Errorf("unpublished %d times", n)
	}
}

// TestRefusedClaims: each says why.
func TestRefusedClaims(t *testing.T) {
	m, o, _ := alone(t)
	other := volumeFor("data", nil)
	other.Name, other.Spec.ClaimRef.UID = "pv-other", "another"
	o.volumes["pv-other"] = other
	o.claims["other"], o.claims["going"], o.claims["unbound"] = claimFor("other"), claimFor("data"), claimFor("data")
	o.claims["going"].DeletionTimestamp = &metav1.Time{Time: time.Now()}
	o.claims["unbound"].Spec.VolumeName = ""
	mounted := func(p *v1.Pod) { p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "a"}} }
	given := func(p *v1.Pod) { p.Spec.Containers[0].VolumeDevices = []v1.VolumeDevice{{Name: "a"}} }
	for _, tt := range []struct {
		volume v1.Volume
		change func(p *v1.Pod)
		want   string
	}{
		{claimed("a", "other"), mounted, "PV pv-other: bound to another claim"},
		{claimed("a", "going"), mounted, "PVC n/data: is being deleted"},
		{claimed("a", "unbound"), mounted, "PVC n/data: not bound to a volume yet"},
		{claimed("a", "raw"), mounted, "volume a has volumeMode Block, but is specified in volumeMounts"},
		{claimed("a", "data"), given, "volume a has volumeMode Filesystem, but is specified in volumeDevices"},
		{volume("work", v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}), func(*v1.Pod) {}, "was not created for pod n/p"},
		{volume("a", v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: driverName}}), mounted, "driver " + driverName + " has no inline volumes"},
	} {
		p := podWith(tt.volume)
		tt.change(p)
		err := m.Setup(t.Context(), p)
		var step *csi.StepError
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "MountVolume.SetUp failed for volume ") || !errors.As(err, &step) || step.Reason() != "FailedMount" {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}

// TestEphemeralClaim is the pod's own.
func TestEphemeralClaim(t *testing.T) {
	m, o, _ := alone(t)
	p := podWith(volume("work", v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}))
	o.claims["p-work"].OwnerReferences = []metav1.OwnerReference{{UID: "u", Controller: new(true)}}
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "work", MountPath: "/work", ReadOnly: true}}
	setUp(t, m, p)
	mounts, err := m.Mounts(p, &p.Spec.Containers[0], nil)
	if err != nil || !strings.HasSuffix(mounts[0].HostPath, "/pv-data/mount") || !mounts[0].Readonly {
		t.Errorf("mounts %v, %v", mounts, err)
	}
	if err := m.TearDown(t.Context(), "u"); err != nil {
		t.Error(err)
	}
}
