package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/orlop/orlop/test/images"
)

// Version is the Kubernetes release that everything is built from, see k8s/go.mod.
const Version = "1.37.2"

// Binaries are the programs of a cluster.
type Binaries struct {
	Etcd, APIServer, ControllerManager, Scheduler, Kubectl, Kubelet, KubeProxy string
}

var build = sync.OnceValues(func() (Binaries, error) {
	dir := os.Getenv("ORLOP_CLUSTER_BIN")
	if dir == "" {
		cache, err := images.CacheDir()
		if err != nil {
			return Binaries{}, err
		}
		dir = filepath.Join(cache, "kubernetes-"+Version)
	}
	bin := Binaries{}
	for _, part := range []struct {
		path    *string
		module  string
		pkg     string
		program string
	}{
		{&bin.Etcd, "etcd", "go.etcd.io/etcd/server/v3", "etcd"},
		{&bin.APIServer, "k8s", "k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"},
		{&bin.ControllerManager, "k8s", "k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"},
		{&bin.Scheduler, "k8s", "k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"},
		{&bin.Kubectl, "k8s", "k8s.io/kubernetes/cmd/kubectl", "kubectl"},
		{&bin.Kubelet, "k8s", "k8s.io/kubernetes/cmd/kubelet", "kubelet"},
		{&bin.KubeProxy, "k8s", "k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"},
	} {
		*part.path = filepath.Join(dir, part.program)
		if _, err := os.Stat(*part.path); err == nil {
			continue
		}
		if err := compile(part.module, part.pkg, *part.path); err != nil {
			return Binaries{}, err
		}
	}
	return bin, nil
})

// Build returns the programs: those in $ORLOP_CLUSTER_BIN if it is set, else those that it builds, once, into the cache of
// the tests.
func Build() (Binaries, error) { return build() }

// compile builds a package of one of the modules beside this file, whose go.mod says which versions it is made of.
func compile(module, pkg, out string) error {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return errors.New("cluster: no path to the sources")
	}
	flags := "-s -w"
	for _, p := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		major, minor, _ := strings.Cut(Version, ".")
		minor, _, _ = strings.Cut(minor, ".")
		flags += fmt.Sprintf(" -X %[1]s.gitVersion=v%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s -X %[1]s.gitTreeState=clean", p, Version, major, minor)
	}
	fmt.Println("building", filepath.Base(out), "(the first build takes some minutes)")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", flags, "-o", out, pkg)
	cmd.Dir = filepath.Join(filepath.Dir(here), module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}
