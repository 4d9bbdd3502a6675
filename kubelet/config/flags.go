package config

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
)

// Flags are kubelet's own: what a configuration file can't say, as it differs from node to node, and where that file is.
type Flags struct {
	File, Dir           string // --config, --config-dir
	Kubeconfig          string
	BootstrapKubeconfig string
	HostnameOverride    string
	NodeIP              string
	NodeLabels          map[string]string
	RootDir, CertDir    string
	CloudProvider       string
	overrides           []func(*Config) // by flags of fields, in their order
}

// AddTo defines the flags: those that only flags can say, those that kubeadm passes, and the deprecated ones that replace
// fields.
func (f *Flags) AddTo(fs *pflag.FlagSet) {
	fs.StringVar(&f.File, "config", "", "file with a KubeletConfiguration")
	fs.StringVar(&f.Dir, "config-dir", "", "directory of drop-ins, *.conf, each a KubeletConfiguration")
	fs.StringVar(&f.Kubeconfig, "kubeconfig", "", "how to reach the API server; without it, the node stands alone")
	fs.StringVar(&f.BootstrapKubeconfig, "bootstrap-kubeconfig", "", "how to reach the API server to ask for a client certificate, if --kubeconfig does not exist")
	fs.StringVar(&f.HostnameOverride, "hostname-override", "", "the node's name, instead of the hostname")
	fs.StringVar(&f.NodeIP, "node-ip", "", "the node's address, or one of each family with a comma between")
	fs.StringToStringVar(&f.NodeLabels, "node-labels", nil, "labels of the node when it registers, key=value,…")
	fs.StringVar(&f.RootDir, "root-dir", "/var/lib/kubelet", "directory of the kubelet's files, volumes among them")
	fs.StringVar(&f.CertDir, "cert-dir", "/var/lib/kubelet/pki", "directory of certificates that are made or asked for")
	fs.StringVar(&f.CloudProvider, "cloud-provider", "", "external: a cloud controller manager knows the node's addresses")
	f.fields(fs)
	for _, name := range []string{"pod-infra-container-image", "network-plugin", "cni-conf-dir", "cni-bin-dir", "image-credential-provider-config",
		"image-credential-provider-bin-dir", "feature-gates", "container-runtime"} {
		fs.String(name, "", "accepted, without effect")
		_ = fs.MarkHidden(name) // it fails only for a flag that is not there
	}
	fs.IntP("v", "v", 0, "accepted, without effect; see --log-level")
	_ = fs.MarkHidden("v")
}

// fields are flags that set what a file may also say.
func (f *Flags) fields(fs *pflag.FlagSet) {
	text := func(name, usage string, set func(c *Config, value string) error) {
		fs.Func(name, usage+" (replaces the field of the file)", func(value string) error {
			if err := set(&Config{}, value); err != nil {
				return err
			}
			f.overrides = append(f.overrides, func(c *Config) { _ = set(c, value) }) // it was tried above
			return nil
		})
	}
	plain := func(name, usage string, field func(c *Config) *string) {
		text(name, usage, func(c *Config, value string) error { *field(c) = value; return nil })
	}
	number := func(name, usage string, field func(c *Config) *int32) {
		text(name, usage, func(c *Config, value string) error {
			_, err := fmt.Sscan(value, field(c))
			return err
		})
	}
	table := func(name, usage, separator string, field func(c *Config) *map[string]string) {
		text(name, usage, func(c *Config, value string) error {
			m, err := parseMap(value, separator)
			*field(c) = m
			return err
		})
	}
	plain("container-runtime-endpoint", "the CRI runtime's socket", func(c *Config) *string { return &c.ContainerRuntimeEndpoint })
	plain("image-service-endpoint", "the CRI image service's socket", func(c *Config) *string { return &c.ImageServiceEndpoint })
	plain("pod-manifest-path", "directory of static pods", func(c *Config) *string { return &c.StaticPodPath })
	plain("manifest-url", "URL of static pods", func(c *Config) *string { return &c.StaticPodURL })
	plain("cgroup-driver", "cgroupfs or systemd", func(c *Config) *string { return &c.CgroupDriver })
	plain("cgroup-root", "the cgroup below which pods are", func(c *Config) *string { return &c.CgroupRoot })
	plain("cluster-domain", "the cluster's DNS domain", func(c *Config) *string { return &c.ClusterDomain })
	plain("address", "address to listen on", func(c *Config) *string { return &c.Address })
	plain("tls-cert-file", "certificate of the kubelet API", func(c *Config) *string { return &c.TLSCertFile })
	plain("tls-private-key-file", "key of the kubelet API", func(c *Config) *string { return &c.TLSPrivateKeyFile })
	plain("client-ca-file", "who signs certificates of clients", func(c *Config) *string { return &c.Authentication.X509.ClientCAFile })
	number("port", "port of the kubelet API", func(c *Config) *int32 { return &c.Port })
	number("read-only-port", "port of the kubelet API without authentication; 0 for none", func(c *Config) *int32 { return &c.ReadOnlyPort })
	number("max-pods", "how many pods the node takes", func(c *Config) *int32 { return &c.MaxPods })
	table("system-reserved", "what the system needs, cpu=100m,memory=1Gi,…", "=", func(c *Config) *map[string]string { return &c.SystemReserved })
	table("kube-reserved", "what Kubernetes' own programs need", "=", func(c *Config) *map[string]string { return &c.KubeReserved })
	table("eviction-hard", "when to evict at once, memory.available<100Mi,…", "<", func(c *Config) *map[string]string { return &c.EvictionHard })
	text("resolv-conf", "the node's resolv.conf", func(c *Config, value string) error { c.ResolverConfig = &value; return nil })
	text("cluster-dns", "addresses of the cluster's DNS", func(c *Config, value string) error { c.ClusterDNS = strings.Split(value, ","); return nil })
	text("allowed-unsafe-sysctls", "sysctls that pods may set beside the safe ones", func(c *Config, value string) error {
		c.AllowedUnsafeSysctls = strings.Split(value, ",")
		return nil
	})
	boolean := func(name, usage string, field func(c *Config) **bool) {
		text(name, usage, func(c *Config, value string) error {
			var b bool
			_, err := fmt.Sscan(value, &b)
			*field(c) = &b
			return err
		})
		fs.Lookup(name).NoOptDefVal = "true"
	}
	boolean("register-node", "register the node with the API server", func(c *Config) **bool { return &c.RegisterNode })
	boolean("fail-swap-on", "refuse to start on a node with swap", func(c *Config) **bool { return &c.FailSwapOn })
	text("register-with-taints", "taints of the node when it registers, key=value:effect,…", func(c *Config, value string) error {
		taints, err := parseTaints(value)
		c.RegisterWithTaints = taints
		return err
	})
}

// Apply lets flags replace fields.
func (f *Flags) Apply(c *Config) {
	for _, override := range f.overrides {
		override(c)
	}
}

func parseMap(text, separator string) (map[string]string, error) {
	out := map[string]string{}
	for _, part := range strings.Split(text, ",") {
		if part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, separator)
		if !ok {
			return nil, fmt.Errorf("%q: write NAME%sVALUE", part, separator)
		}
		out[name] = value
	}
	return out, nil
}

func parseTaints(text string) ([]v1.Taint, error) {
	var taints []v1.Taint
	for _, part := range strings.Split(text, ",") {
		if part == "" {
			continue
		}
		name, effect, ok := strings.Cut(part, ":")
		if !ok {
			return nil, fmt.Errorf("%q: write key=value:effect", part)
		}
		key, value, _ := strings.Cut(name, "=")
		taints = append(taints, v1.Taint{Key: key, Value: value, Effect: v1.TaintEffect(effect)})
	}
	return taints, nil
}
