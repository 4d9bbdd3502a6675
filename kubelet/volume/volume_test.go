package volume

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/csi"
	"github.com/orlop/orlop/kubelet/mount"
	"github.com/orlop/orlop/test/kernel"
)

func TestMain(m *testing.M) { os.Exit(kernel.Main(m)) }

// objects are those of the fake API server.
type objects struct {
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret
	claims     map[string]*v1.PersistentVolumeClaim
	volumes    map[string]*v1.PersistentVolume
	drivers    map[string]*storagev1.CSIDriver
	tokens     int
	life       time.Duration
}

func found[T any](m map[string]*T, kind, name string) (*T, error) {
	if o := m[name]; o != nil {
		return o, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: kind}, name)
}

func (o *objects) ConfigMap(_ context.Context, _, name string) (*v1.ConfigMap, error) {
	return found(o.configMaps, "configmaps", name)
}

func (o *objects) Secret(_ context.Context, _, name string) (*v1.Secret, error) {
	return found(o.secrets, "secrets", name)
}

func (o *objects) PersistentVolumeClaim(_ context.Context, _, name string) (*v1.PersistentVolumeClaim, error) {
	return found(o.claims, "persistentvolumeclaims", name)
}

func (o *objects) PersistentVolume(_ context.Context, name string) (*v1.PersistentVolume, error) {
	return found(o.volumes, "persistentvolumes", name)
}

func (o *objects) ServiceAccountToken(_ context.Context, _, _ string, r *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	if r.Spec.BoundObjectRef == nil || r.Spec.BoundObjectRef.Kind != "Pod" {
		return nil, errors.New("the token would not be bound to its pod")
	}
	o.tokens++
	return &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
		Token: "token " + strings.Repeat("x", o.tokens), ExpirationTimestamp: metav1.NewTime(time.Now().Add(o.life)),
	}}, nil
}

func (o *objects) CSIDriver(_ context.Context, name string) (*storagev1.CSIDriver, error) {
	return found(o.drivers, "csidrivers", name)
}

func manager(t *testing.T, o *objects) *Manager {
	t.Helper()
	root := t.TempDir()
	drivers, err := csi.New(csi.Config{Root: root, Name: "node", Objects: o, InUseChanged: func() {}, Wake: func(types.UID) {}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	m := New(Config{
		Root: root, Objects: o, CSI: drivers, Log: slog.New(slog.DiscardHandler),
		Allocatable:       func() v1.ResourceList { return v1.ResourceList{v1.ResourceCPU: resource.MustParse("4")} },
		RecursiveReadOnly: func(*string) bool { return false },
	})
	t.Cleanup(func() {
		if err := mount.UnmountBelow(m.cfg.Root); err != nil {
			t.Error(err)
		}
	})
	return m
}

func podWith(volumes ...v1.Volume) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u", Labels: map[string]string{"a": "b"}}}
	p.Spec.Volumes = volumes
	p.Spec.Containers = []v1.Container{{Name: "c"}}
	return p
}

func volume(name string, source v1.VolumeSource) v1.Volume {
	return v1.Volume{Name: name, VolumeSource: source}
}

func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(data)
	}
	return out
}

// TestConfigMap is made, follows its object in one step, and drops keys that are gone.
func TestConfigMap(t *testing.T) {
	kernel.Require(t, kernel.Root)
	o := &objects{configMaps: map[string]*v1.ConfigMap{"cm": {Data: map[string]string{"a": "1", "b": "2"}}}}
	m := manager(t, o)
	p := podWith(volume("v", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}))
	if err := m.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	dir := m.dir("u", configMapKind, "v")
	if got := content(t, dir); got["a"] != "1" || got["b"] != "2" {
		t.Errorf("%v", got)
	}
	first, _ := os.Readlink(filepath.Join(dir, dataLink))
	if err := m.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.Readlink(filepath.Join(dir, dataLink)); again != first {
		t.Error("nothing changed, and it was written anew")
	}
	o.configMaps["cm"] = &v1.ConfigMap{Data: map[string]string{"a": "changed"}}
	if err := m.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if got := content(t, dir); len(got) != 1 || got["a"] != "changed" {
		t.Errorf("after the change: %v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, first)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old content is left: %v", err)
	}
	for _, data := range []map[string]string{{"a": "changed", "z": "last"}, {"a": "changed"}} {
		o.configMaps["cm"] = &v1.ConfigMap{Data: data}
		if err := m.Setup(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if got := content(t, dir); !maps.Equal(got, data) {
			t.Errorf("%v, want %v", got, data)
		}
	}
	delete(o.configMaps, "cm")
	if err := m.Setup(t.Context(), p); err == nil || !strings.Contains(err.Error(), `MountVolume.SetUp failed for volume "v"`) {
		t.Errorf("without its object: %v", err)
	}
}

func TestSelections(t *testing.T) {
	kernel.Require(t, kernel.Root)
	yes, mode := true, int32(0o400)
	o := &objects{secrets: map[string]*v1.Secret{"s": {Data: map[string][]byte{"k": []byte("v"), "other": nil}}}, life: time.Hour}
	m := manager(t, o)
	p := podWith(
		volume("picked", v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s", Items: []v1.KeyToPath{{Key: "k", Path: "deep/er", Mode: &mode}}}}),
		volume("absent", v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "none", Optional: &yes}}),
		volume("mixed", v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
			{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}},
			{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
				{Path: "cpu", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.cpu"}},
			}}},
		}}}),
	)
	if err := m.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.dir("u", secretKind, "picked"), "deep/er")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("%v, %v", info, err)
	}
	if mounted, err := mount.Mounted(m.dir("u", secretKind, "picked")); err != nil || !mounted {
		t.Errorf("a secret is on disk: %v", err)
	}
	if got := content(t, m.dir("u", projectedKind, "mixed")); got["token"] != "token x" || got["labels"] != `a="b"` || got["cpu"] != "4" {
		t.Errorf("projected: %v", got)
	}
	if err := m.Setup(t.Context(), p); err != nil || o.tokens != 1 {
		t.Errorf("%v; a token that is fresh was renewed: %d requests", err, o.tokens)
	}
	for _, path := range []string{"../x", "/etc/x", "..data", "a/../../x"} {
		p.Spec.Volumes[0].Secret.Items[0].Path = path
		if err := m.Setup(t.Context(), p); err == nil {
			t.Errorf("path %q was taken", path)
		}
	}
	if err := m.TearDown(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.podDir("u")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pod's directory is left: %v", err)
	}
}

// TestTokenIsRenewed when little of its life is left.
func TestTokenIsRenewed(t *testing.T) {
	kernel.Require(t, kernel.Root)
	o := &objects{life: time.Millisecond}
	m := manager(t, o)
	p := podWith(volume("v", v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
		{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}},
	}}}))
	for range 2 {
		if err := m.Setup(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	if got := content(t, m.dir("u", projectedKind, "v"))["token"]; got != "token xx" {
		t.Errorf("%q", got)
	}
}

func TestEmptyDir(t *testing.T) {
	kernel.Require(t, kernel.Root)
	group, limit := int64(2000), resource.MustParse("1Mi")
	m := manager(t, &objects{})
	p := podWith(
		volume("disk", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}),
		volume("memory", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: &limit}}),
	)
	p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &group}
	if err := m.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"disk", "memory"} {
		info, err := os.Stat(m.dir("u", emptyDirKind, name))
		if err != nil || info.Mode()&fs.ModeSetgid == 0 || info.Mode().Perm() != 0o777 || ownerOf(info).gid != 2000 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := os.WriteFile(filepath.Join(m.dir("u", emptyDirKind, "memory"), "f"), make([]byte, 2<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("2 MiB into 1 MiB of memory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(m.dir("u", emptyDirKind, "disk"), "f"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if used, err := m.Used("u", "disk"); err != nil || used < 1<<20 || used > 2<<20 {
		t.Errorf("1 MiB is counted as %d, %v", used, err)
	}
}

// TestGroupOfRunningPod: when this process is started anew, what a running pod keeps from its group stays so.
func TestGroupOfRunningPod(t *testing.T) {
	kernel.Require(t, kernel.Root)
	group, data := int64(2000), t.TempDir()
	o := &objects{
		claims:  map[string]*v1.PersistentVolumeClaim{"c": {Spec: v1.PersistentVolumeClaimSpec{VolumeName: "pv"}}},
		volumes: map[string]*v1.PersistentVolume{"pv": {Spec: v1.PersistentVolumeSpec{PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: data}}}}},
	}
	m := manager(t, o)
	p := podWith(
		volume("empty", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}),
		volume("local", v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}),
	)
	p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &group}
	for start := range 2 {
		again := New(m.cfg)
		if err := again.Setup(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{again.dir("u", emptyDirKind, "empty"), data} {
			if info, err := os.Stat(dir); err != nil || ownerOf(info).gid != 2000 {
				t.Errorf("%s is not of the group: %v", dir, err)
			}
			file := filepath.Join(dir, "private")
			if start == 0 {
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			} else if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", file, info.Mode(), err)
			}
		}
	}
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind v1.HostPathType
		path string
		ok   bool
	}{
		{v1.HostPathUnset, dir + "/absent", true},
		{v1.HostPathDirectory, dir, true},
		{v1.HostPathDirectory, file, false},
		{v1.HostPathDirectory, dir + "/absent", false},
		{v1.HostPathDirectoryOrCreate, dir + "/new/dir", true},
		{v1.HostPathFile, file, true},
		{v1.HostPathFile, dir, false},
		{v1.HostPathFileOrCreate, dir + "/newfile", true},
		{v1.HostPathSocket, file, false},
		{v1.HostPathCharDev, "/dev/null", true},
		{v1.HostPathCharDev, file, false},
		{v1.HostPathBlockDev, "/dev/null", false},
		{"Whatever", file, false},
	} {
		if err := checkHostPath(tt.path, tt.kind); (err == nil) != tt.ok {
			t.Errorf("%s %s: %v", tt.kind, tt.path, err)
		}
	}
	if info, err := os.Stat(dir + "/new/dir"); err != nil || !info.IsDir() {
		t.Errorf("DirectoryOrCreate: %v", err)
	}
}

// TestClaim finds the volume behind a claim, waits for one that is not bound, and keeps the data when the pod goes.
func TestClaim(t *testing.T) {
	kernel.Require(t, kernel.Root)
	data := t.TempDir()
	o := &objects{
		claims:  map[string]*v1.PersistentVolumeClaim{"c": {}},
		volumes: map[string]*v1.PersistentVolume{"pv": {Spec: v1.PersistentVolumeSpec{PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: data}}}}},
	}
	m := manager(t, o)
	p := podWith(volume("v", v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}))
	if err := m.Setup(t.Context(), p); err == nil || !strings.Contains(err.Error(), "not bound") {
		t.Errorf("a claim that is not bound: %v", err)
	}
	o.claims["c"].Spec.VolumeName = "pv"
	if err := m.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if got := m.Usage("u"); len(got) != 1 || got[0].PVCRef == nil || *got[0].CapacityBytes == 0 || *got[0].UsedBytes == 0 {
		t.Errorf("the claim's use is %v", got)
	}
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/data", SubPath: "part"}}
	mounts := m.mounts(t, p)
	if err := os.WriteFile(filepath.Join(mounts[0].HostPath, "f"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.TearDown(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(data, "part/f")); err != nil || string(got) != "kept" {
		t.Errorf("the data is %q, %v", got, err)
	}
	o.volumes["pv"].Spec.PersistentVolumeSource = v1.PersistentVolumeSource{NFS: &v1.NFSVolumeSource{}}
	var unsupported *UnsupportedError
	if err := m.Setup(t.Context(), p); !errors.As(err, &unsupported) {
		t.Errorf("a kind that is not supported: %v", err)
	}
}

func (m *Manager) mounts(t *testing.T, p *v1.Pod) []*cri.Mount {
	t.Helper()
	mounts, err := m.Mounts(p, &p.Spec.Containers[0], func(name string) (string, bool) { return "value-of-" + name, name != "ABSENT" })
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

func TestMounts(t *testing.T) {
	kernel.Require(t, kernel.Root)
	both := v1.MountPropagationBidirectional
	m := manager(t, &objects{configMaps: map[string]*v1.ConfigMap{"cm": {}}})
	p := podWith(
		volume("e", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}),
		volume("cm", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}),
		volume("i", v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "x:1"}}),
	)
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{
		{Name: "e", MountPath: "/e", ReadOnly: true, MountPropagation: &both},
		{Name: "cm", MountPath: "relative"},
		{Name: "i", MountPath: "/i", SubPath: "a/b"},
		{Name: "e", MountPath: "/sub", SubPathExpr: "$(NAME)/x"},
	}
	if _, err := m.Mounts(p, &p.Spec.Containers[0], nil); err == nil {
		t.Error("volumes that are not there were mounted")
	}
	if err := m.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	got := m.mounts(t, p)
	if !got[0].Readonly || got[0].Propagation != cri.MountPropagation_PROPAGATION_BIDIRECTIONAL || !got[0].SelinuxRelabel {
		t.Errorf("emptyDir: %v", got[0])
	}
	if !got[1].Readonly || got[1].ContainerPath != "/relative" {
		t.Errorf("configMap: %v", got[1])
	}
	if got[2].Image.GetImage() != "x:1" || got[2].ImageSubPath != "a/b" || got[2].HostPath != "" {
		t.Errorf("image: %v", got[2])
	}
	if _, err := os.Stat(filepath.Join(m.dir("u", emptyDirKind, "e"), "value-of-NAME/x")); err != nil {
		t.Errorf("subPathExpr: %v", err)
	}
	enabled := v1.RecursiveReadOnlyEnabled
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "e", MountPath: "/e", ReadOnly: true, RecursiveReadOnly: &enabled}}
	if _, err := m.Mounts(p, &p.Spec.Containers[0], nil); err == nil {
		t.Error("recursive read-only was promised by a runtime that has none")
	}
}

// TestSubPathStaysInside: whatever links a container left in a volume, nothing outside of it is mounted.
func TestSubPathStaysInside(t *testing.T) {
	kernel.Require(t, kernel.Root)
	m := manager(t, &objects{})
	p := podWith(volume("e", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}))
	if err := m.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	dir := m.dir("u", emptyDirKind, "e")
	for name, target := range map[string]string{"abs": "/etc", "up": "../../../..", "inside": "real", "chain": "abs/passwd"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	for sub, ok := range map[string]bool{
		"inside": true, "abs": false, "up": false, "chain": false, "abs/new": false, "up/new": false, "../x": false, "/etc": false, "real/../../x": false,
	} {
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "e", MountPath: "/m", SubPath: sub}}
		mounts, err := m.Mounts(p, &p.Spec.Containers[0], nil)
		if (err == nil) != ok {
			t.Errorf("subPath %q: %v, %v", sub, mounts, err)
		}
	}
	if _, err := os.Stat("/etc/new"); err == nil {
		t.Error("a directory was made outside")
	}
}

// TestTearDownSparesWhatIsMounted: data behind a mount that does not go is not removed.
func TestTearDownSparesWhatIsMounted(t *testing.T) {
	kernel.Require(t, kernel.Root)
	m := manager(t, &objects{})
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(m.podDir("u"), "volumes", "kubernetes.io~other", "v")
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(data, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	busy, err := os.Open(filepath.Join(target, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.TearDown(t.Context(), "u"); err == nil {
		t.Error("a busy mount went")
	}
	busy.Close()
	if err := m.Orphans(t.Context(), map[types.UID]bool{}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(data, "f")); err != nil {
		t.Errorf("the data went with the pod: %v", err)
	}
}
