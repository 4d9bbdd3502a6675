package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/cluster"
	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/kernel"
)

// subject is the kubelet under test: the shim, or the real one.
type subject struct {
	dir    string
	binary string
	args   []string
	env    []string
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
	if err := kernel.MakeCgroup(s.cgroup); err != nil {
		return nil, err
	}
	config := filepath.Join(s.dir, "config.yaml")
	if err := os.WriteFile(config, []byte(s.config()), 0o644); err != nil {
		return nil, err
	}
	s.args = []string{"--config=" + config, "--kubeconfig=" + control.Kubeconfig(nodeName), "--root-dir=" + filepath.Join(s.dir, "root"),
		"--cert-dir=" + filepath.Join(s.dir, "pki"), "--hostname-override=" + nodeName, "--node-ip=" + cluster.IP,
		"--image-credential-provider-config=" + locked.config(), "--image-credential-provider-bin-dir=" + locked.dir}
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

func (s *subject) start() error { return control.Run(logName, s.env, s.binary, s.args...) }

// restart kills the kubelet without warning and starts it anew.
func (s *subject) restart() error {
	if err := control.Kill(logName); err != nil {
		return err
	}
	return s.start()
}

func (s *subject) logTail() string { return control.Tail(logName, 6000) }

// close ends the kubelet and removes what a kubelet leaves on purpose: pods, cgroups and mounts.
func (s *subject) close() error {
	var errs []error
	if control.PID(logName) != 0 {
		errs = append(errs, control.End(logName))
	}
	errs = append(errs, removePods(), kernel.UnmountBelow(s.dir), kernel.RemoveCgroup(s.cgroup))
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

func pull(ctx context.Context, c *criclient.Client, name string) error {
	_, err := c.Image.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}})
	return err
}
