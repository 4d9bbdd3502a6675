package daemon

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/orlop/orlop/test/kernel"
)

const acceptAll = `{"default": [{"type": "insecureAcceptAnything"}]}` + "\n"

// config is the daemon's configuration file.
func (d *Daemon) config() string {
	tables := map[string]string{
		"":        fmt.Sprintf("root = %q\nrun_root = %q\nsocket = %q\nlog_level = \"debug\"\n", filepath.Join(d.Dir, "root"), filepath.Join(d.Dir, "run"), d.Socket()),
		"monitor": fmt.Sprintf("path = %q\n", d.bins.Monitor),
		"cgroup":  fmt.Sprintf("driver = %q\nparent = %q\n", driver(), d.cgroup()),
		"cni":     fmt.Sprintf("conf_dir = %q\nbin_dirs = [%q, %q]\n", d.CNIDir, d.CNIBin, d.bins.CNI),
		"image": fmt.Sprintf("registries_conf = %q\nregistries_conf_dir = %q\npolicy = %q\ncerts_dir = %q\nmin_free_bytes = 1000000\n",
			filepath.Join(d.Dir, "registries.conf"), d.RegistriesDir, d.Policy, d.CertsDir),
	}
	for name, lines := range d.Settings {
		tables[name] += lines
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(tables)) { // "" is first, as TOML wants it
		if name != "" {
			fmt.Fprintf(&b, "\n[%s]\n", name)
		}
		b.WriteString(tables[name])
	}
	return b.String()
}

// cgroup is the parent of all pods: a slice where systemd makes the cgroups, as the daemon's "auto" has it. It has
// the directory in its name, so that what is below it is known to be this daemon's.
func (d *Daemon) cgroup() string {
	id := "orlop_test" + strings.NewReplacer("/", "_", "-", "_").Replace(d.Dir)
	if Systemd() {
		return id + ".slice"
	}
	return "/" + id
}

// driverEnv is who makes cgroups, as the key cgroup.driver has it.
const driverEnv = "ORLOP_TEST_CGROUP_DRIVER"

func driver() string { return cmp.Or(os.Getenv(driverEnv), "auto") }

// Systemd tells whether systemd makes the cgroups: where it is process 1, unless $ORLOP_TEST_CGROUP_DRIVER is
// "cgroupfs".
func Systemd() bool { return driver() != "cgroupfs" && kernel.Has(kernel.Systemd) }

func (d *Daemon) cgroupDirs() []string { return []string{"/" + strings.TrimPrefix(d.cgroup(), "/")} }

func (d *Daemon) bridge() string { return fmt.Sprintf("orlop%d", d.Subnet) }

// network is a bridge with a dual stack and port mappings.
func (d *Daemon) network() string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge", "bridge": %[3]q, "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": %[2]q,
        "ranges": [[{"subnet": "10.203.%[1]d.0/24"}], [{"subnet": "fd00:203:%[1]d::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, d.Subnet, filepath.Join(d.Dir, "leases"), d.bridge())
}
