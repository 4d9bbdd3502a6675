package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/moby/sys/mountinfo"

	"github.com/orlop/orlop/test/cluster"
	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
)

// subject is the kubelet under test: the shim, or the real one.
type subject struct {
	dir    string
	binary string
	args   []string
	cgroup string
}

const logName = "kubelet"

func newSubject(dir string) (*subject, error) {
	s := &subject{dir: filepath.Join(dir, "n"), cgroup: "/orlop_test" + strings.ReplaceAll(dir, "/", "_")}
	if err := os.MkdirAll(s.manifests(), 0o755); err != nil {
		return nil, err
	}
	if err := control.AddNode(nodeName); err != nil {
		return nil, err
	}
	if err := s.makeCgroup(); err != nil {
		return nil, err
	}
	config := filepath.Join(s.dir, "config.yaml")
	if err := os.WriteFile(config, []byte(s.config()), 0o644); err != nil {
		return nil, err
	}
	s.args = []string{"--config=" + config, "--kubeconfig=" + control.Kubeconfig(nodeName), "--root-dir=" + filepath.Join(s.dir, "root"),
		"--cert-dir=" + filepath.Join(s.dir, "pki"), "--hostname-override=" + nodeName, "--node-ip=" + cluster.IP}
	if os.Getenv("ORLOP_KUBELET") == "real" {
		s.binary = control.Bin.Kubelet
		return s, nil
	}
	bins, err := daemon.Build()
	if err != nil {
		return nil, err
	}
	s.binary = bins.Kubelet
	s.args = append(s.args, "--log-level=debug")
	return s, nil
}

func (s *subject) manifests() string { return filepath.Join(s.dir, "manifests") }

func (s *subject) config() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[1]s
port: 10250
healthzBindAddress: 127.0.0.1
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %[2]s}
authorization: {mode: Webhook}
tlsCertFile: %[3]s
tlsPrivateKeyFile: %[4]s
containerRuntimeEndpoint: unix://%[5]s
cgroupDriver: cgroupfs
cgroupRoot: %[6]s
failCgroupV1: false
failSwapOn: false
serializeImagePulls: false
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
staticPodPath: %[7]s
podLogsDir: %[8]s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%%, nodefs.inodesFree: 1%%, imagefs.available: 1%%, imagefs.inodesFree: 1%%}
`, cluster.IP, control.File("ca.crt"), control.File(nodeName+"-server.crt"), control.File(nodeName+"-server.key"),
		runtime.Socket(), s.cgroup, s.manifests(), filepath.Join(s.dir, "logs"))
}

func (s *subject) start() error { return control.Run(logName, nil, s.binary, s.args...) }

// restart kills the kubelet without warning and starts it anew.
func (s *subject) restart() error {
	if err := control.Kill(logName); err != nil {
		return err
	}
	return s.start()
}

func (s *subject) logTail() string {
	data, err := os.ReadFile(control.Log(logName))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-6000):])
}

// cgroupDirs are the directories of the cgroup of this kubelet, in all hierarchies.
func (s *subject) cgroupDirs() ([]string, error) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{filepath.Join("/sys/fs/cgroup", s.cgroup)}, nil
	}
	roots, err := filepath.Glob("/sys/fs/cgroup/*")
	var dirs []string
	for _, root := range roots {
		if info, err := os.Lstat(root); err == nil && info.IsDir() {
			dirs = append(dirs, filepath.Join(root, s.cgroup))
		}
	}
	return dirs, err
}

func (s *subject) makeCgroup() error {
	dirs, err := s.cgroupDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// close ends the kubelet and removes what a kubelet leaves on purpose: pods, cgroups and mounts.
func (s *subject) close() error {
	var errs []error
	if control.PID(logName) != 0 {
		errs = append(errs, control.End(logName))
	}
	errs = append(errs, removePods(), unmountBelow(s.dir))
	dirs, err := s.cgroupDirs()
	errs = append(errs, err)
	for _, dir := range dirs {
		out, err := exec.Command("find", dir, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w: %s", dir, err, out))
		}
	}
	return errors.Join(errs...)
}

// list is what the runtime has of a namespace's pods, or of one of them.
func (s *subject) list(ctx context.Context, namespace, pod string) ([]*cri.PodSandbox, error) {
	labels := map[string]string{"io.kubernetes.pod.namespace": namespace}
	if pod != "" {
		labels["io.kubernetes.pod.name"] = pod
	}
	reply, err := runtime.Client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: labels}})
	return reply.GetItems(), err
}

// forget removes a pod from the runtime behind the kubelet's back.
func (s *subject) forget(ctx context.Context, namespace, pod string) error {
	list, err := s.list(ctx, namespace, pod)
	for _, p := range list {
		_, removeErr := runtime.Client.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
		err = errors.Join(err, removeErr)
	}
	return err
}

func removePods() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := runtime.Client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range list.Items {
		_, stopErr := runtime.Client.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id})
		_, removeErr := runtime.Client.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
		err = errors.Join(err, stopErr, removeErr)
	}
	return err
}

func unmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	for i := len(mounts) - 1; i >= 0; i-- {
		err = errors.Join(err, unix.Unmount(mounts[i].Mountpoint, unix.UMOUNT_NOFOLLOW))
	}
	return err
}

func pull(ctx context.Context, c *criclient.Client, name string) error {
	_, err := c.Image.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}})
	return err
}
