package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/orlop/orlop/test/images"
)

// pluginsVersion of github.com/containernetworking/plugins.
const pluginsVersion = "v1.9.1"

var plugins = []string{"main/bridge", "main/loopback", "ipam/host-local", "meta/portmap", "meta/bandwidth", "meta/firewall"}

// Binaries are what a daemon runs.
type Binaries struct {
	Orlop, Monitor string
	Kubelet, Proxy string // the programs behind `orlop kubelet` and `orlop proxy`
	CNI            string // directory of the standard plugins
}

var build = sync.OnceValues(func() (Binaries, error) {
	cache, err := images.CacheDir()
	if err != nil {
		return Binaries{}, err
	}
	b := Binaries{CNI: os.Getenv("ORLOP_CNI_BIN")}
	if b.CNI == "" {
		b.CNI = filepath.Join(cache, "cni-"+pluginsVersion)
		if err := buildPlugins(b.CNI); err != nil {
			return Binaries{}, err
		}
	}
	dir := os.Getenv("ORLOP_BIN")
	if dir == "" {
		dir = filepath.Join(cache, "bin")
		if err := buildOrlop(dir); err != nil {
			return Binaries{}, err
		}
	}
	b.Orlop, b.Monitor = filepath.Join(dir, "orlop"), filepath.Join(dir, "orlop-conmon")
	b.Kubelet, b.Proxy = filepath.Join(dir, "orlop-kubelet"), filepath.Join(dir, "orlop-proxy")
	return b, nil
})

// Build returns the binaries: those of $ORLOP_BIN (orlop, orlop-conmon, orlop-kubelet, orlop-proxy) and $ORLOP_CNI_BIN if they are set, else it
// builds them from this checkout and from the plugins' module, once in this process.
func Build() (Binaries, error) { return build() }

func buildPlugins(dir string) error {
	var missing []string
	for _, p := range plugins {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(p))); err != nil {
			missing = append(missing, "github.com/containernetworking/plugins/plugins/"+p+"@"+pluginsVersion)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return run(os.TempDir(), []string{"GOBIN=" + dir, "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false"},
		append([]string{"install", "-trimpath", "-ldflags=-s -w"}, missing...)...)
}

func buildOrlop(dir string) error {
	const tags = "seccomp,containers_image_openpgp,exclude_graphdriver_btrfs"
	for _, name := range []string{"orlop", "orlop-kubelet", "orlop-proxy"} {
		err := run("", nil, "build", "-trimpath", "-buildvcs=false", "-tags="+tags, "-o", filepath.Join(dir, name), "github.com/orlop/orlop/cmd/"+name)
		if err != nil {
			return err
		}
	}
	// It is the init of pods too, where there is no loader: static.
	return run("", nil, "build", "-trimpath", "-buildvcs=false", "-tags=seccomp,netgo,osusergo,runc_nocriu",
		"-ldflags=-s -w -linkmode external -extldflags -static", "-o", filepath.Join(dir, "orlop-conmon"),
		"github.com/orlop/orlop/cmd/orlop-conmon")
}

// run a go command in dir, "" for the current one.
func run(dir string, env []string, args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
