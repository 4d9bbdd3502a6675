// Package watch follows a real API server with proxy/watch, as the user that kube-proxy is.
package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/orlop/orlop/test/cluster"
	"github.com/orlop/orlop/test/kernel"
)

// control is the control plane that all tests share.
var control *cluster.Cluster

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Println("watch: skipped: needs root")
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			return 1
		}
		return 0
	}
	if !kernel.InOwnNetwork() {
		code, err := kernel.OwnNetwork()
		if err != nil {
			fmt.Println("watch:", err)
		}
		return code
	}
	code, err := withCluster(func() int { return kernel.Main(m) })
	if err != nil {
		fmt.Println("watch:", err)
		return max(code, 1)
	}
	return code
}

func withCluster(do func() int) (code int, err error) {
	dir, err := os.MkdirTemp("/var/tmp", "orl-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := kernel.LoopbackUp(); err != nil {
		return 1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute) // a cold build of Kubernetes is slow
	defer cancel()
	if control, err = cluster.Start(ctx, dir); err != nil {
		return 1, err
	}
	code = do()
	return code, control.Stop()
}
