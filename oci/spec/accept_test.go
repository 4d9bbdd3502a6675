package spec

import (
	"slices"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestAccepted gives each golden spec to libcontainer's own translation, which is what runs them: it must take them,
// and must understand each mount option as one, for what it does not know it passes on as data to the file system.
func TestAccepted(t *testing.T) {
	for name, g := range goldenCases(t) {
		t.Run(name, func(t *testing.T) {
			out, err := g.translate()
			if err != nil {
				t.Fatal(err)
			}
			makeUserNamespace(out.Spec)
			cfg, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: "c1", Spec: out.Spec})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := len(cfg.Mounts), len(out.Spec.Mounts); got != want {
				t.Errorf("libcontainer sees %d mounts, the spec has %d", got, want)
			}
			for i, m := range cfg.Mounts {
				checkMount(t, m, out.Spec.Mounts[i])
			}
			if got, want := len(cfg.Namespaces), len(out.Spec.Linux.Namespaces); got != want {
				t.Errorf("libcontainer sees %d namespaces, the spec has %d", got, want)
			}
			if (cfg.Seccomp == nil) != (out.Spec.Linux.Seccomp == nil) {
				t.Errorf("seccomp in the spec %v, in libcontainer's config %v", out.Spec.Linux.Seccomp != nil, cfg.Seccomp != nil)
			}
		})
	}
}

func checkMount(t *testing.T, m *configs.Mount, from rspec.Mount) {
	t.Helper()
	if m.Device == "bind" && m.Data != "" {
		t.Errorf("mount %s: libcontainer does not know the options %q", m.Destination, m.Data)
	}
	readonly := m.Flags&unix.MS_RDONLY != 0 || m.RecAttr != nil && m.RecAttr.Attr_set&unix.MOUNT_ATTR_RDONLY != 0
	if want := slices.Contains(from.Options, "ro") || slices.Contains(from.Options, "rro"); readonly != want {
		t.Errorf("mount %s: read-only %v in libcontainer's config, %v in the spec", m.Destination, readonly, want)
	}
	if m.IsIDMapped() != (len(from.UIDMappings) > 0) {
		t.Errorf("mount %s: id-mapped %v in libcontainer's config", m.Destination, m.IsIDMapped())
	}
}

// makeUserNamespace replaces a user namespace that is joined, and does not exist in this test, by a new one:
// libcontainer reads the mappings of one that it is to join.
func makeUserNamespace(s *rspec.Spec) {
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == rspec.UserNamespace && ns.Path != "" {
			s.Linux.Namespaces[i].Path = ""
			s.Linux.UIDMappings = []rspec.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		}
	}
}
