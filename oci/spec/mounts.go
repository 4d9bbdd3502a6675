package spec

import (
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// mounts are the kernel's file systems and the pod's files, without those that the config covers, and the config's,
// parents before what lies in them.
func (b *builder) mounts() error {
	config, err := b.configMounts()
	if err != nil {
		return err
	}
	files, err := b.podFiles()
	if err != nil {
		return err
	}
	all := slices.DeleteFunc(slices.Concat(b.kernelMounts(), files), func(m rspec.Mount) bool {
		return covered(m.Destination, config)
	})
	all = append(all, config...)
	slices.SortStableFunc(all, func(x, y rspec.Mount) int { return depth(x.Destination) - depth(y.Destination) })
	b.spec.Mounts = all
	return nil
}

// depth counts the elements of a clean absolute path; 0 for "/".
func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// covered tells whether the config mounts something at dest, or over the kernel tree that dest is a part of: who brings
// a /dev wants that one, and a devpts on top would be made in the host's directory. Elsewhere (/etc) a parent from the
// config and our file in it go together.
func covered(dest string, config []rspec.Mount) bool {
	return slices.ContainsFunc(config, func(m rspec.Mount) bool {
		return m.Destination == dest || below(dest, m.Destination) &&
			(below(m.Destination, "/dev") || below(m.Destination, "/sys") || below(m.Destination, "/proc"))
	})
}

// kernelMounts are the file systems that the OCI spec calls default for Linux, and a cgroup tree.
func (b *builder) kernelMounts() []rspec.Mount {
	mounts := []rspec.Mount{
		b.procMount(),
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		b.sysMount(),
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: b.ptsOptions()},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", b.sysAccess()}},
	}
	if b.hostsInUserNamespace(rspec.IPCNamespace) {
		// Unlike /proc and /sys, the host's need not be mounted anywhere to bind it from.
		b.note("/dev/mqueue left out: a user namespace can't mount the message queues of the host's IPC namespace")
		return mounts
	}
	return append(mounts, rspec.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue",
		Options: []string{"nosuid", "noexec", "nodev"}})
}

// sysAccess: the CRI wants a privileged container's sysfs writable.
func (b *builder) sysAccess() string {
	if b.privileged() {
		return "rw"
	}
	return "ro"
}

// hostTree binds a tree of the host where the kernel refuses a new mount: in a user namespace, a file system that
// shows a namespace of another kind can be mounted only if that belongs to the user namespace, too.
func (b *builder) hostTree(path, access string) rspec.Mount {
	if access == "ro" && b.in.Host.RecursiveReadOnly {
		access = "rro" // "ro" alone leaves the file systems below writable
	}
	return rspec.Mount{Destination: path, Type: "bind", Source: path,
		Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", access}}
}

// hostsInUserNamespace: the container has a user namespace but the host's namespace of this kind.
func (b *builder) hostsInUserNamespace(kind rspec.LinuxNamespaceType) bool {
	return b.inUserNamespace() && b.reach[kind] == hosts
}

func (b *builder) procMount() rspec.Mount {
	if b.hostsInUserNamespace(rspec.PIDNamespace) {
		return b.hostTree("/proc", "rw") // what is not the container's, the user namespace keeps it from
	}
	return rspec.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}
}

func (b *builder) sysMount() rspec.Mount {
	if b.hostsInUserNamespace(rspec.NetworkNamespace) {
		return b.hostTree("/sys", b.sysAccess())
	}
	return rspec.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs",
		Options: []string{"nosuid", "noexec", "nodev", b.sysAccess()}}
}

// ptsOptions gives terminals to the group tty, 5 everywhere, unless the user namespace has no such group: the mount
// would fail.
func (b *builder) ptsOptions() []string {
	options := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	const tty = 5
	mapped := slices.ContainsFunc(b.in.GIDs, func(m rspec.LinuxIDMapping) bool {
		return m.ContainerID <= tty && tty-m.ContainerID < m.Size
	})
	if b.inUserNamespace() && !mapped {
		return options
	}
	return append(options, "gid=5")
}

// podFiles are what the server made for the pod: its shared memory and the three files in /etc.
func (b *builder) podFiles() ([]rspec.Mount, error) {
	access := "rw"
	if b.sec.GetReadonlyRootfs() {
		access = "ro"
	}
	var mounts []rspec.Mount
	for _, f := range []struct{ dest, source, access string }{
		{"/dev/shm", b.in.ShmPath, "rw"}, // memory, not part of the root
		{"/etc/hostname", b.in.HostnamePath, access},
		{"/etc/resolv.conf", b.in.ResolvConfPath, access},
		{"/etc/hosts", b.in.HostsPath, access},
	} {
		if f.source == "" {
			continue
		}
		source, err := cleanPath("source of "+f.dest, f.source)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, rspec.Mount{Destination: f.dest, Type: "bind", Source: source,
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", f.access}})
	}
	return mounts, nil
}
