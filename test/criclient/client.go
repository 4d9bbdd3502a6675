// Package criclient lets a test say in one line what it wants of a CRI server: pods, containers, execs, logs. What is
// made in a test is removed at its end. Calls that must fail are made on the raw clients.
package criclient

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/kernel"
)

// MaxMessage is the size of reply that the kubelet takes, in bytes.
const MaxMessage = 16 << 20

// Client is one connection to a CRI server.
type Client struct {
	Runtime cri.RuntimeServiceClient
	Image   cri.ImageServiceClient
	// LogRoot is where pods get their log directories.
	LogRoot string
	// CgroupParent is where pods get a cgroup each: a path, or a slice ("orlop.slice") where systemd makes cgroups.
	CgroupParent string
	conn         *grpc.ClientConn
}

// Dial connects to an endpoint, for example "unix:///run/orlop/orlop.sock". It does not wait for the server.
func Dial(endpoint string) (*Client, error) {
	conn, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quickly, MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	return &Client{
		Runtime: cri.NewRuntimeServiceClient(conn), Image: cri.NewImageServiceClient(conn),
		CgroupParent: "/orlop-test", conn: conn,
	}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// WaitReady waits until the server answers.
func (c *Client) WaitReady(ctx context.Context) (*cri.VersionResponse, error) {
	return c.Runtime.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
}

// Unique returns a name that no other test of this or another run uses.
func Unique(prefix string) string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + "-" + hex.EncodeToString(b[:])
}

// Pod is a pod that the test made.
type Pod struct {
	ID     string
	Config *cri.PodSandboxConfig
	c      *Client
}

// PodMod changes the config of a pod before it is made.
type PodMod func(*cri.PodSandboxConfig)

// HostNetwork puts the pod into the network namespace of the node; the kubelet gives such a pod no hostname.
func HostNetwork(p *cri.PodSandboxConfig) {
	p.Hostname = ""
	p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
}

// PodConfig is a pod of its own name, with private namespaces except the PID namespace, which is each container's
// own, and a log directory of its own.
func (c *Client) PodConfig(t testing.TB, mods ...PodMod) *cri.PodSandboxConfig {
	t.Helper()
	name := Unique("pod")
	p := &cri.PodSandboxConfig{
		Metadata:    &cri.PodSandboxMetadata{Name: name, Uid: Unique("uid"), Namespace: "test"},
		Hostname:    name,
		Labels:      map[string]string{"test": filepath.Base(t.Name())},
		Annotations: map[string]string{},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: c.podCgroup(name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
		},
	}
	if c.LogRoot != "" {
		p.LogDirectory = filepath.Join(c.LogRoot, name)
		if err := os.MkdirAll(p.LogDirectory, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(p.LogDirectory) }) // what stays there disturbs nobody
	}
	for _, mod := range mods {
		mod(p)
	}
	return p
}

// podCgroup names a slice as the kubelet does: a dash in a slice's name divides it from its parent's.
func (c *Client) podCgroup(name string) string {
	if parent, ok := strings.CutSuffix(c.CgroupParent, ".slice"); ok {
		return parent + "-" + strings.ReplaceAll(name, "-", "_") + ".slice"
	}
	return c.CgroupParent + "/" + name
}

// Pod runs a pod.
func (c *Client) Pod(t testing.TB, mods ...PodMod) *Pod {
	t.Helper()
	return c.RunPod(t, c.PodConfig(t, mods...), "")
}

// RunPod runs a pod of this config.
func (c *Client) RunPod(t testing.TB, config *cri.PodSandboxConfig, handler string) *Pod {
	t.Helper()
	r, err := c.Runtime.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("RunPodSandbox: %v", err)
	}
	pod := &Pod{ID: r.PodSandboxId, Config: config, c: c}
	t.Cleanup(func() { pod.cleanUp(t) })
	return pod
}

// cleanUp has a context of its own, as the test's is done by now.
func (p *Pod) cleanUp(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), kernel.Patient(time.Minute))
	defer cancel()
	_, err := p.c.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
	if err != nil && status.Code(err) != codes.NotFound { // which a server must not say, but the pod is gone
		t.Errorf("clean up: StopPodSandbox: %v", err)
	}
	if _, err := p.c.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Errorf("clean up: RemovePodSandbox: %v", err)
	}
}

// Status of the pod.
func (p *Pod) Status(t testing.TB) *cri.PodSandboxStatus {
	t.Helper()
	r, err := p.c.Runtime.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Fatalf("PodSandboxStatus: %v", err)
	}
	return r.Status
}

// Stop the pod.
func (p *Pod) Stop(t testing.TB) {
	t.Helper()
	if _, err := p.c.Runtime.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Fatalf("StopPodSandbox: %v", err)
	}
}

// Remove the pod.
func (p *Pod) Remove(t testing.TB) {
	t.Helper()
	if _, err := p.c.Runtime.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Fatalf("RemovePodSandbox: %v", err)
	}
}

// Pull an image and return its reference as containers name it.
func (c *Client) Pull(t testing.TB, image string) string {
	t.Helper()
	r, err := c.Image.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
	if err != nil {
		t.Fatalf("PullImage %s: %v", image, err)
	}
	return r.ImageRef
}
