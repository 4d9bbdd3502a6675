package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/images"
	"github.com/orlop/orlop/test/registry"
)

// locker is a registry that wants a login, and a credential provider plugin that has one.
type locker struct {
	dir      string // of the plugin and its configuration
	registry *registry.Registry
	image    string
}

func newLocker(ctx context.Context, dir string) (l *locker, err error) {
	l = &locker{dir: filepath.Join(dir, "plugin")}
	if l.registry, err = registry.Start(registry.Options{Dir: filepath.Join(dir, "locked"), User: "cloud", Password: "sesame"}); err != nil {
		return nil, err
	}
	if err := l.registry.WriteCA(runtime.CertsDir); err != nil {
		return l, err
	}
	img, err := images.Get(ctx, "probe")
	if err != nil {
		return l, err
	}
	// Another image than that of all tests: of one that was pulled with a login, kubelet wants to see a login from every pod.
	if img, err = img.Reconfigure(func(c *imgspec.ImageConfig) { c.Labels = map[string]string{"locked": "yes"} }); err != nil {
		return l, err
	}
	if l.image, err = l.registry.Push(img, "team/probe", "1"); err != nil {
		return l, err
	}
	return l, l.install()
}

func (l *locker) config() string { return filepath.Join(l.dir, "config.yaml") }

func (l *locker) install() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: provider
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: [%q]
  defaultCacheDuration: 1m
  args: [sesame]
`, l.registry.Host)
	if err := os.WriteFile(l.config(), []byte(config), 0o644); err != nil {
		return err
	}
	program := fmt.Sprintf(`#!/bin/sh
grep -q '"image":"%[1]s/team/probe"' || exit 1
echo '{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse", "cacheKeyType": "Registry",
  "auth": {"%[1]s": {"username": "cloud", "password": "'$1'"}}}'
`, l.registry.Host)
	return os.WriteFile(filepath.Join(l.dir, "provider"), []byte(program), 0o755)
}

// TestCredentialProvider: an image whose registry wants a login is pulled with that of a plugin of the node.
func TestCredentialProvider(t *testing.T) {
	s := begin(t)
	s.apply(strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: licensed}
spec:
  restartPolicy: Never
  containers: [{name: main, image: LOCKED, imagePullPolicy: Always, command: ["true"]}]
`, "LOCKED", locked.image))
	s.waitPod("licensed", "done", phase(v1.PodSucceeded))
	s.kubectl("delete", "pod", "licensed")
	s.eventually("its image to go", func() error {
		_, err := runtime.Client.Image.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: locked.image}})
		return err
	})
}
