package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	kubelet "k8s.io/kubelet/pkg/apis"
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
	ProviderConfig      string          // --image-credential-provider-config
	ProviderDir         string          // --image-credential-provider-bin-dir
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
	fs.StringVar(&f.ProviderConfig, "image-credential-provider-config", "", "file or directory with a CredentialProviderConfig: plugins that log in to registries")
	fs.StringVar(&f.ProviderDir, "image-credential-provider-bin-dir", "", "directory of these plugins")
	labels := fs.Lookup("node-labels")
	labels.Value = checked{labels.Value, func() error { return checkLabels(f.NodeLabels) }}
	s := setter{f, fs}
	s.serverFields()
	s.podFields()
	s.nodeFields()
	s.hiddenFields()
	s.withoutEffect()
	fs.IntP("v", "v", 0, "accepted, without effect; see --log-level")
	_ = fs.MarkHidden("v")
}

// Apply lets flags replace fields.
func (f *Flags) Apply(c *Config) {
	for _, override := range f.overrides {
		override(c)
	}
}

// checked is a flag whose value is looked at when it is set.
type checked struct {
	pflag.Value
	check func() error
}

func (v checked) Set(text string) error {
	return errors.Join(v.Value.Set(text), v.check())
}

// checkLabels refuses labels that the API server would not let a kubelet set on its own node, as NodeRestriction has it
// (KEP-279), and those that are no labels.
func checkLabels(labels map[string]string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		if isReserved(name) && !kubelet.IsKubeletLabel(name) {
			errs = append(errs, fmt.Errorf("%s: a node may not give itself this label; use one below kubelet.kubernetes.io or node.kubernetes.io, or your own domain", name))
		}
		for _, problem := range validation.IsQualifiedName(name) {
			errs = append(errs, fmt.Errorf("%s: %s", name, problem))
		}
		for _, problem := range validation.IsValidLabelValue(labels[name]) {
			errs = append(errs, fmt.Errorf("%s: value %q: %s", name, labels[name], problem))
		}
	}
	return errors.Join(errs...)
}

func isReserved(label string) bool {
	domain, _, ok := strings.Cut(label, "/")
	domain = "." + domain
	return ok && (strings.HasSuffix(domain, ".kubernetes.io") || strings.HasSuffix(domain, ".k8s.io"))
}
