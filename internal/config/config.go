// Package config is Orlop's configuration: one TOML file, drop-ins beside it, and nothing else.
//
// One table ([Keys]) names every key with its place in [Config], its meaning and its check. Reading, checking, the
// default file that `orlop config` prints and the manual page orlop.toml(5) all walk that table, so that none of
// them can say something else than the others.
package config

import (
	"errors"
	"time"
)

// DefaultPath is the file that is read unless another is asked for; its drop-ins are in DefaultPath + ".d".
const DefaultPath = "/etc/orlop/orlop.toml"

// Config is all that can be configured. It is data: each part of the program is given its own piece of it.
type Config struct {
	Root      string
	RunRoot   string
	Socket    string
	LogLevel  string
	LogFormat string

	Monitor   Monitor
	Cgroup    Cgroup
	CNI       CNI
	Image     Image
	Storage   Storage
	Container Container
	Stream    Stream
}

// Monitor says where orlop-conmon is.
type Monitor struct{ Path string }

// Cgroup says how the cgroups of pods are made and named.
type Cgroup struct{ Driver, Parent string }

// CNI says where network plugins and their configuration are.
type CNI struct {
	ConfDir        string
	BinDirs        []string
	DefaultNetwork string
	ConfTemplate   string
}

// Image says how images are pulled and kept.
type Image struct {
	RegistriesConf    string
	RegistriesConfDir string
	Policy            string
	AuthFile          string
	CertsDir          string
	MaxParallelLayers int
	MaxUnpackedBytes  int64
	MinFreeBytes      int64
	Pinned            []string
}

// Storage is passed to the layer store.
type Storage struct{ OverlayOptions []string }

// Container is what containers get unless their request or image says otherwise.
type Container struct {
	Capabilities    []string
	Env             []string
	Ulimits         []string
	Sysctls         []string
	PidsLimit       int64
	ShmBytes        int64
	SeccompProfile  string
	AppArmorProfile string
	SELinux         string
}

// Stream is the server for exec, attach and port-forward.
type Stream struct {
	Address     string
	IdleTimeout time.Duration
}

// Defaults is the configuration of a node that has no configuration file.
func Defaults() Config {
	return Config{
		Root:      "/var/lib/orlop",
		RunRoot:   "/run/orlop",
		Socket:    "/run/orlop/orlop.sock",
		LogLevel:  "info",
		LogFormat: "text",
		Cgroup:    Cgroup{Driver: "auto"},
		CNI: CNI{
			ConfDir: "/etc/cni/net.d",
			BinDirs: []string{"/opt/cni/bin"},
		},
		Image: Image{
			CertsDir:          "/etc/containers/certs.d",
			MaxParallelLayers: 6,
			MinFreeBytes:      512 << 20,
			Pinned:            []string{},
		},
		Storage: Storage{OverlayOptions: []string{}},
		Container: Container{
			Capabilities: []string{
				"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
				"CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
			},
			Env:     []string{},
			Ulimits: []string{},
			Sysctls: []string{},
			// As with Docker and CRI-O.
			ShmBytes: 64 << 20,
			SELinux:  "auto",
		},
		Stream: Stream{Address: "127.0.0.1:0", IdleTimeout: 4 * time.Hour},
	}
}

// Validate returns every mistake in c, joined; each is a [*Mistake]. It looks at nothing outside c: whether a file
// exists is found out by the part that opens it.
func (c *Config) Validate() error {
	var all []error
	for _, k := range Keys() {
		if m := k.mistake(c); m != nil {
			all = append(all, m)
		}
	}
	return errors.Join(all...)
}
