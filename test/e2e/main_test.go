// Package e2e drives a live daemon through CRI, on the real kernel, with images from a real registry. All tests share
// one daemon unless they kill, break or configure it.
//
// With ORLOP_E2E_ENDPOINT=unix:///… it drives that CRI server instead and skips what only Orlop promises; its
// registry certificates are written to ORLOP_E2E_CERTS. This is how the suite itself is checked.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/images"
	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/registry"
)

// What all tests share.
var (
	node  *criclient.Client
	own   *daemon.Daemon     // nil with a foreign endpoint
	open  *registry.Registry // without a password
	probe string             // an image that is in the store: busybox and the probe program, see test/images
	image *images.Image      // that image, for variants of it
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if foreign := os.Getenv("ORLOP_E2E_ENDPOINT"); foreign != "" && os.Geteuid() == 0 {
		dir, err := daemon.StateDir()
		if err != nil {
			fmt.Println("e2e:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		return runIn(dir, foreign, m)
	}
	return daemon.Isolated("e2e", func(dir string) int { return runIn(dir, "", m) })
}

// base is the directory of this run's state; each daemon has one below it.
var base string

func runIn(dir, foreign string, m *testing.M) int {
	_ = flag.Set("test.parallel", "6") // they wait more than they compute
	base = dir
	if err := setUp(dir, foreign); err != nil {
		fmt.Println("e2e:", err)
		if open != nil {
			_ = open.Close() // its end is no news now
		}
		return 1
	}
	code := measured(m)
	if err := tearDown(); err != nil {
		fmt.Println("e2e: tear down:", err)
		code = 1
	}
	return code
}

func setUp(dir, foreign string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	certs := os.Getenv("ORLOP_E2E_CERTS")
	if foreign != "" {
		if node, err = criclient.Dial(foreign); err != nil {
			return err
		}
		node.LogRoot = filepath.Join(dir, "logs")
	} else {
		if own, err = daemon.New(daemon.Options{Dir: filepath.Join(dir, "d"), Subnet: 1}); err != nil {
			return err
		}
		if err := own.Start(ctx); err != nil {
			return err
		}
		node, certs = own.Client, own.CertsDir
	}
	version, err := node.WaitReady(ctx)
	if err != nil {
		return err
	}
	if open, err = registry.Start(registry.Options{Dir: filepath.Join(dir, "registry")}); err != nil {
		return err
	}
	fmt.Printf("e2e: %s %s, %s, %s\n", version.RuntimeName, version.RuntimeVersion, open.Kind, dir)
	trust := open.WriteCA
	if foreign != "" {
		trust = open.WriteHosts
	}
	if err := trust(certs); err != nil {
		return err
	}
	if image, err = images.Get(ctx, "probe"); err != nil {
		return err
	}
	if probe, err = open.Push(image, "test/probe", "1"); err != nil {
		return err
	}
	return pull(ctx, node, probe)
}

func pull(ctx context.Context, c *criclient.Client, name string) error {
	_, err := c.Image.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}})
	return err
}

func tearDown() error {
	if err := open.Close(); err != nil {
		return err
	}
	if own == nil {
		_, err := node.Image.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: probe}})
		return err
	}
	return own.Close()
}

// measured runs the tests and fails if they leave anything.
func measured(m *testing.M) int {
	if own == nil {
		return kernel.Main(m)
	}
	code := daemon.Measured("e2e", m, warmUp, func() (kernel.Snapshot, error) { return kernel.Take(own.Scope()) })
	if code != 0 {
		fmt.Printf("e2e: the end of the daemon's log:\n%s\n", own.LogTail())
	}
	return code
}

// warmUp runs a pod with a container, execs in it and removes both.
func warmUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), kernel.Patient(time.Minute))
	defer cancel()
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: criclient.Unique("warm"), Uid: "warm", Namespace: "test"},
		// The first port mapping makes chains that stay.
		PortMappings: []*cri.PortMapping{{Protocol: cri.Protocol_TCP, HostPort: 18079, ContainerPort: 80}},
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{}},
	}
	pod, err := node.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return err
	}
	ctr, err := node.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: config, Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "warm"}, Image: &cri.ImageSpec{Image: probe},
		},
	})
	if err == nil {
		_, err = node.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: ctr.ContainerId})
	}
	if err == nil {
		_, err = node.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: ctr.ContainerId, Cmd: []string{"true"}})
	}
	_, stopErr := node.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	_, removeErr := node.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	return errors.Join(err, stopErr, removeErr)
}

// ours skips a test of what other runtimes do not promise.
func ours(t testing.TB) {
	t.Helper()
	if own == nil {
		kernel.Skip(t, "ORLOP_E2E_ENDPOINT is set, and only Orlop promises this")
	}
}

var subnets atomic.Int32

// another starts a daemon of the test's own, with the probe image in its store. After the test nothing of it may be
// left but what its Close removes.
func another(t testing.TB, settings map[string]string, prepare ...func(*daemon.Daemon)) *daemon.Daemon {
	t.Helper()
	ours(t)
	n := int(subnets.Add(1)) + 1
	d, err := daemon.New(daemon.Options{Dir: filepath.Join(base, "d"+itoa(n)), Subnet: n, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the daemon's log:\n%s", d.LogTail())
		}
		if err := d.Close(); err != nil {
			t.Errorf("close the daemon: %v", err)
		}
	})
	for _, f := range prepare {
		f(d)
	}
	if err := open.WriteCA(d.CertsDir); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := pull(t.Context(), d.Client, probe); err != nil {
		t.Fatal(err)
	}
	return d
}
