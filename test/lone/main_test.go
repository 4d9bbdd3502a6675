// Package lone drives the kubelet shim on a lone machine: no API server, pods from a directory of manifests or from a URL, over
// Orlop's runtime and over containerd.
package lone

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/images"
	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/registry"
)

// What all tests share.
var (
	base     string             // the directory of this run
	open     *registry.Registry // without a password
	locked   *registry.Registry // with one
	image    string             // busybox and the probe program, see test/images
	secluded string             // the same in the registry that wants a password
	first    *stand             // Orlop's runtime and the shim
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(daemon.Isolated("lone", func(dir string) int { return run(dir, m) }))
}

func run(dir string, m *testing.M) int {
	_ = flag.Set("test.parallel", "6") // they wait more than they compute
	base = dir
	code := 1
	err := setUp()
	if err == nil {
		code = daemon.Measured("lone", m, first.warmUp, stock)
	} else {
		fmt.Println("lone:", err)
	}
	if err := tearDown(); err != nil {
		fmt.Println("lone: tear down:", err)
		code = max(code, 1)
	}
	if code != 0 && first != nil {
		fmt.Printf("lone: the end of the shim's log:\n%s\n", first.shim.LogTail())
	}
	return code
}

func setUp() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if open, err = registry.Start(registry.Options{Dir: filepath.Join(base, "r")}); err != nil {
		return err
	}
	if locked, err = registry.Start(registry.Options{Dir: filepath.Join(base, "l"), User: "ann", Password: "sesame"}); err != nil {
		return err
	}
	img, err := images.Get(ctx, "probe")
	if err != nil {
		return err
	}
	if image, err = open.Push(img, "test/probe", "1"); err != nil {
		return err
	}
	if secluded, err = locked.Push(img, "test/secluded", "1"); err != nil {
		return err
	}
	engine, err := orlop(ctx, filepath.Join(base, "d"), 1)
	if err != nil {
		return err
	}
	first, err = newStand(ctx, standOptions{engine: engine, dir: filepath.Join(base, "n"), port: 10250})
	return err
}

func tearDown() error {
	var errs []error
	if first != nil {
		errs = append(errs, first.close())
	}
	for _, r := range []*registry.Registry{open, locked} {
		if r != nil {
			errs = append(errs, r.Close())
		}
	}
	return errors.Join(errs...)
}

// stock counts what there is between tests.
func stock() (kernel.Snapshot, error) {
	scope, more := first.engine.scope(), first.shim.Scope()
	scope.Dirs = append(scope.Dirs, more.Dirs...)
	scope.Cgroups = append(scope.Cgroups, more.Cgroups...)
	scope.Files, scope.Links = more.Files, more.Links
	return kernel.Take(scope)
}
