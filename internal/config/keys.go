package config

import "strings"

// Key is one setting.
type Key struct {
	// Name is the key with its table: "image.auth_file".
	Name string
	// Doc says in sentences what it does, its unit, and what an empty value means.
	Doc string

	field func(*Config) any // a pointer to a type that set and format know
	check check             // nil if every value will do
}

// Table is the TOML table of the key, "" for the top of the file, and the key's own name in it.
func (k Key) Table() (table, name string) {
	i := strings.LastIndexByte(k.Name, '.')
	if i < 0 {
		return "", k.Name
	}
	return k.Name[:i], k.Name[i+1:]
}

// Tables are the tables of the file in order, with a sentence on each.
func Tables() []struct{ Name, Doc string } {
	return []struct{ Name, Doc string }{
		{"", "Orlop's configuration. Every key is optional; those below show their defaults."},
		{"monitor", "The monitor process that is every container's parent."},
		{"cgroup", "Where pods are put in the cgroup tree."},
		{"cni", "Pod networks, see https://www.cni.dev/docs/spec/."},
		{"image", "Pulling and keeping images."},
		{"storage", "The overlay file systems of images and containers."},
		{"container", "What a container gets unless its request or its image says otherwise."},
		{"stream", "The HTTP server that exec, attach and port-forward connect to."},
	}
}

// Keys are all settings, in the order of the default file.
func Keys() []Key {
	return []Key{
		{"root", "Directory of what outlives a reboot: the database of pods and containers, images, layers, exit codes. " +
			"It must be on a file system that overlayfs takes as an upper directory: ext4, xfs, btrfs or tmpfs, not overlay or NFS.",
			func(c *Config) any { return &c.Root }, absolutePath},
		{"run_root", "Directory of what a reboot ends: sockets, mounts, pinned namespaces. It should be on a tmpfs.",
			func(c *Config) any { return &c.RunRoot }, absolutePath},
		{"socket", "Unix socket of the CRI server, made with mode 0660. The kubelet's containerRuntimeEndpoint is \"unix://\" and this.",
			func(c *Config) any { return &c.Socket }, socketPath},
		{"log_level", "What is logged: \"debug\", \"info\", \"warn\" or \"error\", and all that is graver.",
			func(c *Config) any { return &c.LogLevel }, oneOf("debug", "info", "warn", "error")},
		{"log_format", "\"text\" (key=value) or \"json\", one record a line on standard error.",
			func(c *Config) any { return &c.LogFormat }, oneOf("text", "json")},

		{"monitor.path", "The orlop-conmon binary. Empty: the one beside the orlop binary, else the one in $PATH.",
			func(c *Config) any { return &c.Monitor.Path }, emptyOr(absolutePath)},

		{"cgroup.driver", "Who makes cgroups: \"systemd\", \"cgroupfs\" (Orlop itself), or \"auto\": systemd where it is process 1. " +
			"The kubelet asks for it (KubeletCgroupDriverFromCRI).",
			func(c *Config) any { return &c.Cgroup.Driver }, oneOf("auto", "systemd", "cgroupfs")},
		{"cgroup.parent", "Cgroup of pods that name none of their own; the kubelet's all do. A slice (\"orlop.slice\") with the systemd " +
			"driver, else a path (\"/orlop\"). Empty: one of those two.",
			func(c *Config) any { return &c.Cgroup.Parent }, cgroupParent},

		{"cni.conf_dir", "Directory of network configurations (*.conflist, *.conf, *.json); watched, so a change needs no restart.",
			func(c *Config) any { return &c.CNI.ConfDir }, absolutePath},
		{"cni.bin_dirs", "Directories that plugins are looked for in, the first match counts.",
			func(c *Config) any { return &c.CNI.BinDirs }, nonEmptyListOf(absolutePath)},
		{"cni.default_network", "Name of the network that pods are connected to. Empty: the first file of conf_dir, by name.",
			func(c *Config) any { return &c.CNI.DefaultNetwork }, nil},
		{"cni.conf_template", "Template (text/template over .PodCIDR, .PodCIDRRanges, .Routes) from which a network configuration is written to " +
			"conf_dir when the kubelet tells the node's pod CIDR. Empty: none is written.",
			func(c *Config) any { return &c.CNI.ConfTemplate }, emptyOr(absolutePath)},

		{"image.registries_conf", "Mirrors, blocked and insecure registries, see containers-registries.conf(5). A name without a registry is docker.io's " +
			"on every node, as with containerd: the file's aliases and unqualified-search-registries do not count. Empty: the system's file.",
			func(c *Config) any { return &c.Image.RegistriesConf }, emptyOr(absolutePath)},
		{"image.registries_conf_dir", "Drop-ins of registries_conf. Empty: the system's directory.",
			func(c *Config) any { return &c.Image.RegistriesConfDir }, emptyOr(absolutePath)},
		{"image.policy", "Which signatures an image needs, see containers-policy.json(5). Empty: the system's file; " +
			"where there is none, every image is accepted.",
			func(c *Config) any { return &c.Image.Policy }, emptyOr(absolutePath)},
		{"image.auth_file", "Credentials for pulls whose request carries none, see containers-auth.json(5). Empty: none.",
			func(c *Config) any { return &c.Image.AuthFile }, emptyOr(absolutePath)},
		{"image.certs_dir", "Directory of TLS certificates for each registry, see containers-certs.d(5).",
			func(c *Config) any { return &c.Image.CertsDir }, emptyOr(absolutePath)},
		{"image.max_parallel_layers", "How many layers of one image are fetched and unpacked at a time. 1 to 64.",
			func(c *Config) any { return &c.Image.MaxParallelLayers }, between(1, 64)},
		{"image.max_unpacked_bytes", "Largest unpacked size of one image in bytes, against layer bombs. 0: as much as min_free_bytes lets it.",
			func(c *Config) any { return &c.Image.MaxUnpackedBytes }, between(0, 1<<62)},
		{"image.min_free_bytes", "Bytes that a pull leaves free on the disk of root; it fails before it takes them.",
			func(c *Config) any { return &c.Image.MinFreeBytes }, between(0, 1<<62)},
		{"image.pinned", "Names of images that the kubelet must not remove; a * stands for any characters: \"registry.example/base/*\".",
			func(c *Config) any { return &c.Image.Pinned }, listOf(imageNames)},

		{"storage.overlay_options", "Options of the overlay driver, see containers-storage.conf(5): \"overlay.mountopt=nodev\".",
			func(c *Config) any { return &c.Storage.OverlayOptions }, listOf(assignment)},

		{"container.capabilities", "Capabilities that a container starts from, before its request adds and drops some.",
			func(c *Config) any { return &c.Container.Capabilities }, listOf(capabilityName)},
		{"container.env", "Environment variables (\"NAME=value\") of every container; its image and its request win over them.",
			func(c *Config) any { return &c.Container.Env }, listOf(assignment)},
		{"container.ulimits", "Resource limits of every container, \"name=soft:hard\": \"nofile=1024:524288\"; -1 is unlimited. " +
			"What is not listed is as orlop-conmon has it.",
			func(c *Config) any { return &c.Container.Ulimits }, listOf(ulimit)},
		{"container.sysctls", "Sysctls of every pod (\"net.ipv4.ping_group_range=0 2147483647\"), where it has the namespace of its own " +
			"that the sysctl belongs to. The pod's own win over them.",
			func(c *Config) any { return &c.Container.Sysctls }, listOf(assignment)},
		{"container.pids_limit", "How many processes and threads a container may have whose request sets no limit. 0: as many as its pod.",
			func(c *Config) any { return &c.Container.PidsLimit }, between(0, 4<<20)},
		{"container.shm_bytes", "Size of /dev/shm of every pod in bytes. The pod's annotation shm-size.crio.io (\"128Mi\"), or " +
			"io.kubernetes.cri-o.ShmSize, wins over it. What is in it counts as memory of the container that wrote it.",
			func(c *Config) any { return &c.Container.ShmBytes }, between(4096, 1<<62)},
		{"container.seccomp_profile", "Seccomp profile (JSON) that \"RuntimeDefault\" means. Empty: the built-in one.",
			func(c *Config) any { return &c.Container.SeccompProfile }, emptyOr(absolutePath)},
		{"container.apparmor_profile", "Name of a loaded AppArmor profile that \"RuntimeDefault\" means. Empty: unconfined.",
			func(c *Config) any { return &c.Container.AppArmorProfile }, nil},
		{"container.selinux", "Whether pods are kept apart by SELinux labels: \"on\", \"off\", or \"auto\": where the kernel has SELinux on.",
			func(c *Config) any { return &c.Container.SELinux }, oneOf("auto", "on", "off")},

		{"stream.address", "Host and port to listen on; port 0 takes a free one. The server speaks plain HTTP guarded by one-time tokens, " +
			"so keep it on loopback, where the kubelet is.",
			func(c *Config) any { return &c.Stream.Address }, listenAddress},
		{"stream.idle_timeout", "After how long without a byte a stream is closed: \"30m\", \"4h\".",
			func(c *Config) any { return &c.Stream.IdleTimeout }, positiveDuration},
	}
}
