// Package kubelet drives the kubelet shim as part of a real cluster: a real control plane schedules pods to a node that
// runs it over Orlop's runtime.
//
// With ORLOP_KUBELET=real the same tests run with the real kubelet: that is how the suite itself is checked.
package kubelet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/test/cluster"
	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/images"
	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/registry"
)

// What all tests share.
var (
	control *cluster.Cluster
	runtime *daemon.Daemon
	node    *subject // whose work is tested
	image   string   // busybox and the probe program, see test/images
	locked  *locker  // has the same image for those who log in
)

const nodeName = "node"

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(daemon.Isolated("kubelet", func(dir string) int { return run(dir, m) }))
}

func run(dir string, m *testing.M) int {
	_ = flag.Set("test.parallel", "8") // they wait more than they compute
	before, err := everything(dir)
	if err != nil {
		fmt.Println("kubelet: before the start:", err)
		return 1
	}
	code := 1
	err = setUp(dir)
	if err == nil {
		code = daemon.Measured("kubelet", m, func() error { return warmUp(nothing) }, stock)
	} else {
		fmt.Println("kubelet:", err)
	}
	if err := tearDown(); err != nil {
		fmt.Println("kubelet: tear down:", err)
		code = max(code, 1)
	}
	return max(code, daemon.Left("kubelet, at the end", before, func() (kernel.Snapshot, error) { return everything(dir) }))
}

func setUp(dir string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute) // a cold build of Kubernetes is slow
	defer cancel()
	if control, err = cluster.Start(ctx, filepath.Join(dir, "k")); err != nil {
		return err
	}
	if runtime, err = daemon.New(daemon.Options{Dir: filepath.Join(dir, "d"), Subnet: 2}); err != nil {
		return err
	}
	if err := runtime.Start(ctx); err != nil {
		return err
	}
	if err := loadImage(ctx, dir); err != nil {
		return err
	}
	if locked, err = newLocker(ctx, dir); err != nil {
		return err
	}
	if node, err = newSubject(dir); err != nil {
		return err
	}
	if err := node.start(); err != nil {
		return err
	}
	if err := waitReady(ctx); err != nil {
		return err
	}
	// As after the tests that kill it, the runtime is one that has found its monitor, and not the one that started it.
	return warmUp(func(ctx context.Context) error { return runtime.Restart(ctx, syscall.SIGKILL) })
}

// loadImage pulls the tests' image once, so that no registry is needed later.
func loadImage(ctx context.Context, dir string) error {
	r, err := registry.Start(registry.Options{Dir: filepath.Join(dir, "registry")})
	if err != nil {
		return err
	}
	defer r.Close()
	if err := r.WriteCA(runtime.CertsDir); err != nil {
		return err
	}
	img, err := images.Get(ctx, "probe")
	if err != nil {
		return err
	}
	if image, err = r.Push(img, "test/probe", "1"); err != nil {
		return err
	}
	return pull(ctx, runtime.Client, image)
}

func waitReady(ctx context.Context) error {
	var last v1.NodeCondition
	err := criclient.Wait(ctx, 90*time.Second, func() bool {
		n, err := control.Client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
		if err != nil {
			return false
		}
		for _, c := range n.Status.Conditions {
			if c.Type == v1.NodeReady {
				last = c
				return c.Status == v1.ConditionTrue
			}
		}
		return false
	})
	if err != nil {
		return fmt.Errorf("node is not ready: %s; the end of its log:\n%s", last.Message, node.logTail())
	}
	return nil
}

func tearDown() error {
	var errs []error
	if node != nil {
		errs = append(errs, node.close())
	}
	if locked != nil {
		errs = append(errs, locked.registry.Close())
	}
	if runtime != nil {
		errs = append(errs, runtime.Close())
	}
	if control != nil {
		errs = append(errs, control.Stop())
	}
	return errors.Join(errs...)
}
