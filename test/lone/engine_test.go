package lone

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/kernel"
	"github.com/orlop/orlop/test/process"
	"github.com/orlop/orlop/test/registry"
)

// engine is a runtime that runs.
type engine struct {
	name   string // as container IDs begin: orlop, containerd
	socket string
	client *criclient.Client
	scope  func() kernel.Scope
	close  func() error
}

// orlop starts Orlop's runtime. subnet must be its own.
func orlop(ctx context.Context, dir string, subnet int) (*engine, error) {
	d, err := daemon.New(daemon.Options{Dir: dir, Subnet: subnet})
	if err != nil {
		return nil, err
	}
	for _, r := range []*registry.Registry{open, locked} {
		if err := r.WriteCA(d.CertsDir); err != nil {
			return nil, err
		}
	}
	e := &engine{name: "orlop", socket: d.Socket(), client: d.Client, scope: d.Scope, close: d.Close}
	return e, d.Start(ctx)
}

const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
address = "%[1]s/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %[2]q
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "%[1]s/certs.d"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = %[3]q
conf_dir = "%[1]s/net.d"
`

const containerdNetwork = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "orlopctd", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "%s/leases", "ranges": [[{"subnet": "10.204.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

// containerd starts the distribution's containerd, which runs containers by the distribution's runc.
func containerd(t *testing.T, dir string) *engine {
	t.Helper()
	kernel.Require(t, kernel.Root, kernel.Command("containerd"), kernel.Command("runc"))
	program, err := exec.LookPath("containerd")
	if err != nil {
		t.Fatal(err)
	}
	bins, err := daemon.Build()
	if err != nil {
		t.Fatal(err)
	}
	g, err := process.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	certs := filepath.Join(dir, "certs.d")
	for _, r := range []*registry.Registry{open, locked} {
		if err := r.WriteHosts(certs); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"config.toml": fmt.Sprintf(containerdConfig, dir, image, bins.CNI), "net.d/10-pods.conflist": fmt.Sprintf(containerdNetwork, dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Run("containerd", nil, program, "--config", filepath.Join(dir, "config.toml")); err != nil {
		t.Fatal(err)
	}
	e := &engine{name: "containerd", socket: filepath.Join(dir, "c.sock"), close: func() error {
		return errors.Join(g.Stop(), kernel.UnmountBelow(dir), daemon.RemoveLink("orlopctd"))
	}}
	if e.client, err = criclient.Dial("unix://" + e.socket); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), kernel.Patient(time.Minute))
	defer cancel()
	if _, err := e.client.WaitReady(ctx); err != nil {
		t.Fatalf("containerd: %v; the end of its log:\n%s", err, g.Tail("containerd", 4000))
	}
	return e
}
