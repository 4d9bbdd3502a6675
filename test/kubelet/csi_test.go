package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/test/csidriver"
)

// startDriver starts a CSI driver on the node, of a name of the test's own, and waits until the cluster knows it.
func startDriver(s *space, spec storagev1.CSIDriverSpec, able ...csi.NodeServiceCapability_RPC_Type) *csidriver.Driver {
	s.Helper()
	name := s.name + ".csi.orlop.dev"
	root := filepath.Join(node.dir, "root")
	d := csidriver.New(csidriver.Options{
		Name: name, Registry: filepath.Join(root, "plugins_registry"), Dir: filepath.Join(root, "plugins", name), Able: able,
		Topology: map[string]string{"topology." + name + "/rack": "r1"}, Max: 7,
	})
	object := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	if _, err := control.Client.StorageV1().CSIDrivers().Create(s.Context(), object, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	if err := d.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		// The pods go before their driver, which they need for that.
		if out, err := s.command(context.Background(), "delete", "statefulset,pod", "--all", "--wait", "--timeout=60s").CombinedOutput(); err != nil {
			s.Errorf("pods do not end: %v: %s", err, out)
		}
		d.Stop()
		_ = control.Client.StorageV1().CSIDrivers().Delete(context.Background(), name, metav1.DeleteOptions{}) // the cluster ends anyhow
		_ = os.RemoveAll(d.Dir)
		// It stays, as with kubelet, but empty.
		if err := os.Remove(filepath.Join(root, "plugins/kubernetes.io/csi", name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.Error(err)
		}
	})
	s.within(2*patience, "the driver on the CSINode", func() error { return listed(s, name) })
	return d
}

// listed checks what the cluster knows of a driver on the node.
func listed(s *space, name string) error {
	n, err := control.Client.StorageV1().CSINodes().Get(s.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(n.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == name })
	if i < 0 {
		return fmt.Errorf("its drivers are %v", n.Spec.Drivers)
	}
	is := n.Spec.Drivers[i]
	key := "topology." + name + "/rack"
	if is.NodeID != csidriver.NodeID || !slices.Equal(is.TopologyKeys, []string{key}) || is.Allocatable == nil || *is.Allocatable.Count != 7 {
		return fmt.Errorf("the driver is %+v", is)
	}
	of, err := control.Client.CoreV1().Nodes().Get(s.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if of.Labels[key] != "r1" || !strings.Contains(of.Annotations["csi.volume.kubernetes.io/nodeid"], fmt.Sprintf("%q:%q", name, csidriver.NodeID)) {
		return fmt.Errorf("the node has the labels %v and the annotations %v", of.Labels, of.Annotations)
	}
	return nil
}

// attachVolumes is what the driver's external-attacher does: it says that volumes are attached.
func attachVolumes(s *space, driver string) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	s.Cleanup(func() { cancel(); <-ended })
	all := control.Client.StorageV1().VolumeAttachments()
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			list, err := all.List(ctx, metav1.ListOptions{})
			if err != nil {
				continue
			}
			for _, a := range list.Items {
				if a.Spec.Attacher == driver && !a.Status.Attached && a.DeletionTimestamp == nil {
					patch := []byte(`{"status":{"attached":true,"attachmentMetadata":{"lun":"3"}}}`)
					_, _ = all.Patch(ctx, a.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status") // it is tried again
				}
			}
		}
	}()
}

// makeVolume makes a PersistentVolume of a driver, that can be used on nodes of its topology. Its class is the namespace.
func makeVolume(s *space, driver, mode string) {
	s.Helper()
	s.Cleanup(func() { s.tryKubectl("", "delete", "pv", s.name) }) //nolint:errcheck // the cluster ends anyhow
	s.apply(strings.NewReplacer("SPACE", s.name, "DRIVER", driver, "MODE", mode).Replace(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: SPACE}
spec:
  storageClassName: SPACE
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  volumeMode: MODE
  persistentVolumeReclaimPolicy: Retain
  mountOptions: [noatime]
  csi: {driver: DRIVER, volumeHandle: disk-1, fsType: ext4, volumeAttributes: {color: red}}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: topology.DRIVER/rack, operator: In, values: [r1]}]}]}}
`))
}

const csiSet = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsUser: 1000, fsGroup: 2000}
      containers:
      - name: db
        image: IMAGE
        command: [sh, -c, "date +%s%N >> /data/starts; trap exit TERM; while :; do sleep 0.1; done"]
        readinessProbe: {exec: {command: [test, -s, /data/starts]}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data, subPath: part}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {storageClassName: SPACE, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`

// TestCSIStatefulSet: a volume of a CSI driver, which is attached by the control plane, keeps its data when its pod is
// replaced, and leaves the node when no pod has it any more.
func TestCSIStatefulSet(t *testing.T) {
	s := begin(t)
	policy := storagev1.FileFSGroupPolicy
	d := startDriver(s, storagev1.CSIDriverSpec{PodInfoOnMount: new(true), FSGroupPolicy: &policy}, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
	attachVolumes(s, d.Name)
	makeVolume(s, d.Name, "Filesystem")
	s.apply(strings.ReplaceAll(csiSet, "SPACE", s.name))
	first := s.waitPod("db-0", "ready", ready)

	staged := d.Calls("NodeStageVolume")[0].Request.(*csi.NodeStageVolumeRequest)
	published := d.Calls("NodePublishVolume")[0].Request.(*csi.NodePublishVolumeRequest)
	for what, is := range map[string]bool{
		"the attachment's metadata": staged.PublishContext["lun"] == "3" && published.PublishContext["lun"] == "3",
		"the volume's attributes":   staged.VolumeContext["color"] == "red" && published.VolumeContext["color"] == "red",
		"the pod":                   published.VolumeContext["csi.storage.k8s.io/pod.name"] == "db-0" && published.VolumeContext["csi.storage.k8s.io/ephemeral"] == "false",
		"how to mount":              published.VolumeCapability.GetMount().GetFsType() == "ext4" && slices.Equal(published.VolumeCapability.GetMount().GetMountFlags(), []string{"noatime"}),
		"where it is staged":        published.StagingTargetPath == staged.StagingTargetPath && strings.HasSuffix(staged.StagingTargetPath, "/globalmount"),
	} {
		if !is {
			t.Errorf("the driver is not told %s:\n%v\n%v", what, staged, published)
		}
	}
	unique := v1.UniqueVolumeName("kubernetes.io/csi/" + d.Name + "^disk-1")
	if inUse, attached := volumesOf(s, unique); !inUse || !attached {
		t.Errorf("while it is mounted: volumesInUse has it: %t, volumesAttached: %t", inUse, attached)
	}

	s.kubectl("delete", "pod", "db-0")
	second := s.waitPod("db-0", "ready again", func(p *v1.Pod) bool { return p.UID != first.UID && ready(p) })
	data, err := os.ReadFile(filepath.Join(d.Volume("disk-1"), "part", "starts"))
	if err != nil || strings.Count(string(data), "\n") != 2 {
		t.Errorf("after two starts (second: %s) the volume has %q, %v", second.UID, data, err)
	}

	s.kubectl("scale", "statefulset", "db", "--replicas=0")
	s.eventually("the pod's end", gone(s, "db-0"))
	unstaged(s, d, staged.StagingTargetPath)
	s.eventually("the volume's detachment", func() error {
		list, err := control.Client.StorageV1().VolumeAttachments().List(s.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, a := range list.Items {
			if a.Spec.Attacher == d.Name {
				return fmt.Errorf("%s is there, volumesInUse and volumesAttached: %v", a.Name, fmt.Sprint(volumesOf(s, unique)))
			}
		}
		return nil
	})
}

// volumesOf tells what the Node's status says of a volume.
func volumesOf(s *space, name v1.UniqueVolumeName) (inUse, attached bool) {
	s.Helper()
	n, err := control.Client.CoreV1().Nodes().Get(s.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return slices.Contains(n.Status.VolumesInUse, name),
		slices.ContainsFunc(n.Status.VolumesAttached, func(a v1.AttachedVolume) bool { return a.Name == name })
}

// unstaged waits until a volume has left the node, with all that belonged to it.
func unstaged(s *space, d *csidriver.Driver, stage string) {
	s.Helper()
	s.within(2*patience, "the volume to leave the node", func() error {
		if len(d.Calls("NodeUnstageVolume")) == 0 {
			return fmt.Errorf("the driver was asked for %v", d.Order())
		}
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(stage))
		if err != nil || len(mounts) > 0 {
			return fmt.Errorf("mounted: %v, %w", mounts, err)
		}
		if _, err := os.Stat(filepath.Dir(stage)); !os.IsNotExist(err) {
			return fmt.Errorf("%s is there (%v)", filepath.Dir(stage), err)
		}
		return nil
	})
}

const csiInline = `
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: xyzzy}
---
apiVersion: v1
kind: Pod
metadata: {name: inline}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "echo text > /scratch/file; trap exit TERM; while :; do sleep 0.1; done"]
    readinessProbe: {exec: {command: [test, -s, /scratch/file]}, periodSeconds: 1}
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  volumes:
  - name: scratch
    csi: {driver: DRIVER, fsType: ext4, volumeAttributes: {size: small}, nodePublishSecretRef: {name: key}}
`

// TestCSIInline is a volume that lives and dies with its pod. Its driver is given a secret, and a token.
func TestCSIInline(t *testing.T) {
	s := begin(t)
	d := startDriver(s, storagev1.CSIDriverSpec{
		PodInfoOnMount: new(true), AttachRequired: new(false), VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral},
		TokenRequests: []storagev1.TokenRequest{{Audience: "vault"}},
	})
	s.apply(strings.ReplaceAll(csiInline, "DRIVER", d.Name))
	p := s.waitPod("inline", "ready", ready)
	published := d.Calls("NodePublishVolume")[0].Request.(*csi.NodePublishVolumeRequest)
	context := published.VolumeContext
	if published.Secrets["password"] != "xyzzy" || context["size"] != "small" || context["csi.storage.k8s.io/ephemeral"] != "true" || context["csi.storage.k8s.io/pod.uid"] != string(p.UID) {
		t.Errorf("the driver was asked for %v", published)
	}
	tokens := map[string]struct{ Token string }{}
	if err := json.Unmarshal([]byte(context["csi.storage.k8s.io/serviceAccount.tokens"]), &tokens); err != nil || tokens["vault"].Token == "" {
		t.Errorf("no token for the driver: %v", err)
	}
	if !strings.HasPrefix(published.VolumeId, "csi-") || len(published.VolumeId) != 68 {
		t.Errorf("volume handle %s", published.VolumeId)
	}
	s.kubectl("delete", "pod", "inline")
	s.eventually("the pod's end", gone(s, "inline"))
	if len(d.Calls("NodeUnpublishVolume")) == 0 {
		t.Error("the pod is gone, and its volume was not unpublished")
	}
}

const csiEphemeral = `
apiVersion: v1
kind: Pod
metadata: {name: scratch}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "echo text > /scratch/file; trap exit TERM; while :; do sleep 0.1; done"]
    readinessProbe: {exec: {command: [test, -s, /scratch/file]}, periodSeconds: 1}
    volumeMounts: [{name: work, mountPath: /scratch}]
  volumes:
  - name: work
    ephemeral: {volumeClaimTemplate: {spec: {storageClassName: SPACE, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}
`

// TestCSIEphemeral is a claim of the pod's own, of a driver that does not stage.
func TestCSIEphemeral(t *testing.T) {
	s := begin(t)
	d := startDriver(s, storagev1.CSIDriverSpec{AttachRequired: new(false)})
	makeVolume(s, d.Name, "Filesystem")
	s.apply(strings.ReplaceAll(csiEphemeral, "SPACE", s.name))
	s.waitPod("scratch", "ready", ready)
	if data, err := os.ReadFile(filepath.Join(d.Volume("disk-1"), "file")); err != nil || string(data) != "text\n" {
		t.Errorf("the volume has %q, %v", data, err)
	}
	if inUse, _ := volumesOf(s, v1.UniqueVolumeName("kubernetes.io/csi/"+d.Name+"^disk-1")); inUse {
		t.Error("volumesInUse has a volume that nobody attaches")
	}
	s.kubectl("delete", "pod", "scratch")
	s.eventually("the pod's end", gone(s, "scratch"))
	if n := len(d.Calls("NodeStageVolume")); n > 0 {
		t.Errorf("staged %d times by a driver that does not", n)
	}
}

// TestCSIGrowAndStats: a volume that was made larger is grown by its driver, its claim says so, and how full it is can be read.
func TestCSIGrowAndStats(t *testing.T) {
	s := begin(t)
	d := startDriver(s, storagev1.CSIDriverSpec{AttachRequired: new(false)}, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME, csi.NodeServiceCapability_RPC_GET_VOLUME_STATS)
	makeVolume(s, d.Name, "Filesystem")
	s.apply(strings.ReplaceAll(csiSet, "SPACE", s.name))
	s.waitPod("db-0", "ready", ready)
	s.kubectl("patch", "pv", s.name, "-p", `{"spec":{"capacity":{"storage":"2Gi"}}}`) // as an external resizer does
	s.within(3*patience, "the volume's growth", func() error {
		if size := d.Size("disk-1"); size != 2<<30 {
			return fmt.Errorf("the driver has %d bytes", size)
		}
		claim, err := control.Client.CoreV1().PersistentVolumeClaims(s.name).Get(s.Context(), "data-db-0", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if size := claim.Status.Capacity[v1.ResourceStorage]; size.String() != "2Gi" {
			return fmt.Errorf("the claim has %s", size.String())
		}
		return nil
	})
	s.event("db-0", "FileSystemResizeSuccessful")
	s.within(2*patience, "the volume in /stats/summary", func() error {
		summary := s.kubectl("get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/stats/summary")
		var got stats.Summary
		if err := json.Unmarshal([]byte(summary), &got); err != nil {
			return err
		}
		for _, p := range got.Pods {
			for _, v := range p.VolumeStats {
				if v.PVCRef != nil && *v.PVCRef == (stats.PVCReference{Name: "data-db-0", Namespace: s.name}) {
					if v.Name != "data" || *v.UsedBytes != 400 || *v.CapacityBytes != 1000 || *v.InodesUsed != 1 {
						return fmt.Errorf("it has %+v", v)
					}
					return nil
				}
			}
		}
		return fmt.Errorf("it is not there")
	})
}

const mounter = `
apiVersion: v1
kind: Pod
metadata: {name: mounter}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "mount -t tmpfs shared /kubelet && touch /kubelet/file; trap 'umount /kubelet; exit' TERM; while :; do sleep 0.1; done"]
    securityContext: {privileged: true}
    readinessProbe: {exec: {command: [test, -e, /kubelet/file]}, periodSeconds: 1}
    volumeMounts: [{name: kubelet, mountPath: /kubelet, mountPropagation: Bidirectional}]
  volumes: [{name: kubelet, hostPath: {path: DIR, type: DirectoryOrCreate}}]
`

// TestSharedMounts: what a driver in a pod mounts below the kubelet's directory is seen on the node, and so by other pods.
func TestSharedMounts(t *testing.T) {
	s := begin(t)
	dir := filepath.Join(node.dir, "root", "plugins", s.name)
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	s.apply(strings.ReplaceAll(mounter, "DIR", dir))
	s.waitPod("mounter", "ready", ready)
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Errorf("the node does not see the mount: %v", err)
	}
	s.kubectl("delete", "pod", "mounter")
	s.eventually("the pod's end", gone(s, "mounter"))
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		t.Errorf("mounted yet: %t, %v", mounted, err)
	}
}

const csiDevice = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec: {storageClassName: SPACE, volumeMode: Block, accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: raw}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "ls -l /dev/disk; test -b /dev/disk"]
    volumeDevices: [{name: raw, devicePath: /dev/disk}]
  volumes: [{name: raw, persistentVolumeClaim: {claimName: raw}}]
`

// TestCSIDevice is a claim with volumeMode Block, which is a device in the container.
func TestCSIDevice(t *testing.T) {
	if os.Getenv("ORLOP_KUBELET") == "real" {
		t.Skip("the real kubelet puts a loop device on the device, which here is one that can't be read")
	}
	s := begin(t)
	d := startDriver(s, storagev1.CSIDriverSpec{AttachRequired: new(false)}, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
	makeVolume(s, d.Name, "Block")
	s.apply(strings.ReplaceAll(csiDevice, "SPACE", s.name))
	s.waitPod("raw", "done", phase(v1.PodSucceeded))
	if log := s.kubectl("logs", "raw"); !strings.HasPrefix(log, "brw") || !strings.Contains(log, "7, 250") {
		t.Errorf("the container sees %q", log)
	}
	stage := d.Calls("NodeStageVolume")[0].Request.(*csi.NodeStageVolumeRequest)
	if stage.VolumeCapability.GetBlock() == nil || !strings.HasSuffix(stage.StagingTargetPath, "plugins/kubernetes.io/csi/volumeDevices/staging/"+s.name) {
		t.Errorf("the driver was asked for %v", stage)
	}
	s.eventually("the device to leave the node", func() error { // its pod has ended
		if len(d.Calls("NodeUnpublishVolume")) == 0 || len(d.Calls("NodeUnstageVolume")) == 0 {
			return fmt.Errorf("the driver was asked for %v", d.Order())
		}
		return nil
	})
}

// TestCSINoDriver: events say which driver is missing, and the pod starts when it comes.
func TestCSINoDriver(t *testing.T) {
	s := begin(t)
	d := startDriver(s, storagev1.CSIDriverSpec{AttachRequired: new(false), VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral}})
	d.Stop()
	s.eventually("the driver to leave the CSINode", func() error {
		if listed(s, d.Name) == nil {
			return fmt.Errorf("it is there")
		}
		return nil
	})
	s.apply(strings.ReplaceAll(csiInline, "DRIVER", d.Name))
	e := s.event("inline", "FailedMount")
	if !strings.Contains(e.Message, `MountVolume.SetUp failed for volume "scratch" : `) || !strings.Contains(e.Message, "driver name "+d.Name+" not found in the list of registered CSI drivers") {
		t.Errorf("event: %s", e.Message)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	s.within(2*patience, "the pod to be ready", func() error {
		if !ready(s.pod("inline")) {
			return fmt.Errorf("it is not")
		}
		return nil
	})
	s.kubectl("delete", "pod", "inline")
	s.eventually("the pod's end", gone(s, "inline"))
}

// TestCSIKubeletKilled: what a dead kubelet left is found by the next one, and undone once its pod is deleted.
func TestCSIKubeletKilled(t *testing.T) {
	s := alone(t)
	d := startDriver(s, storagev1.CSIDriverSpec{AttachRequired: new(false)}, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
	makeVolume(s, d.Name, "Filesystem")
	s.apply(strings.ReplaceAll(csiSet, "SPACE", s.name))
	s.waitPod("db-0", "ready", ready)
	before := s.containerIDs("app=db")
	stage := d.Calls("NodeStageVolume")[0].Request.(*csi.NodeStageVolumeRequest).StagingTargetPath
	if err := node.restart(); err != nil {
		t.Fatal(err)
	}
	s.eventually("the driver on the CSINode", func() error { return listed(s, d.Name) })
	s.waitPod("db-0", "ready", ready)
	if after := s.containerIDs("app=db"); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("containers are %v, before the kubelet was killed %v", after, before)
	}
	if err := control.Kill(logName); err != nil {
		t.Fatal(err)
	}
	d.Stop()
	s.kubectl("scale", "statefulset", "db", "--replicas=0")
	s.kubectl("delete", "pod", "db-0", "--force", "--grace-period=0")
	if err := node.start(); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	unstaged(s, d, stage)
}

// TestCSINodeDeleted: a Node that was deleted comes back, and has its drivers.
func TestCSINodeDeleted(t *testing.T) {
	if os.Getenv("ORLOP_KUBELET") == "real" {
		t.Skip("the real kubelet registers its Node when it starts, and then never again")
	}
	s := alone(t)
	d := startDriver(s, storagev1.CSIDriverSpec{})
	nodes := control.Client.CoreV1().Nodes()
	before, err := nodes.Get(s.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.kubectl("delete", "node", nodeName)
	s.eventually("another Node", func() error {
		now, err := nodes.Get(s.Context(), nodeName, metav1.GetOptions{})
		if err == nil && now.UID == before.UID {
			return fmt.Errorf("it is the one that was deleted")
		}
		return err
	})
	if err := waitReady(s.Context()); err != nil {
		t.Error(err)
	}
	s.eventually("the driver on the new CSINode", func() error { return listed(s, d.Name) })
}
