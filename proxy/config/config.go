// Package config reads the proxy's configuration: KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), and the flags
// of kube-proxy, which win over the file.
package config

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"
)

// Config is the configuration as the file and flags say it.
type Config struct {
	kubeproxy.KubeProxyConfiguration
	// Set are the paths of the fields that the file or a flag set, as "nftables.minSyncPeriod".
	Set map[string]bool
	// lenient is why the file was not read strictly; nil if it was.
	lenient error
}

const (
	apiVersion = "kubeproxy.config.k8s.io/v1alpha1"
	kind       = "KubeProxyConfiguration"
)

// The modes.
const (
	NFTables = "nftables"
	IPTables = "iptables"
	IPVS     = "ipvs"
)

// The ways to tell packets of pods from others.
const (
	ClusterCIDR         = "ClusterCIDR"
	NodeCIDR            = "NodeCIDR"
	BridgeInterface     = "BridgeInterface"
	InterfaceNamePrefix = "InterfaceNamePrefix"
)

// Load reads file, which may be "".
func Load(file string) (*Config, error) {
	c := &Config{Set: map[string]bool{}}
	if file == "" {
		return c, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if err := c.read(data); err != nil {
		return nil, fmt.Errorf("config %s: %w", file, err)
	}
	return c, nil
}

// read takes fields that are not known, or there twice, for mistakes that a kube-proxy has gone on with: v1alpha1 has been
// read so ever since. The last one of a field counts.
func (c *Config) read(data []byte) error {
	if err := yaml.UnmarshalStrict(data, &c.KubeProxyConfiguration); err != nil {
		c.KubeProxyConfiguration = kubeproxy.KubeProxyConfiguration{}
		if lenient := yaml.Unmarshal(data, &c.KubeProxyConfiguration); lenient != nil {
			return lenient
		}
		c.lenient = err
	}
	if c.APIVersion != apiVersion || c.Kind != kind {
		return fmt.Errorf("is %s %s; write apiVersion: %s and kind: %s", c.APIVersion, c.Kind, apiVersion, kind)
	}
	asJSON, err := yaml.YAMLToJSON(data)
	if err != nil {
		return err
	}
	var raw map[string]any
	if err := json.Unmarshal(asJSON, &raw); err != nil {
		return err
	}
	c.collect("", raw)
	return nil
}

// Whole is the configuration with its defaults, as a file may have it.
func (c *Config) Whole() *kubeproxy.KubeProxyConfiguration {
	out := c.KubeProxyConfiguration
	out.APIVersion, out.Kind = apiVersion, kind
	return &out
}

// Group is that of the configuration's API.
const Group = kubeproxy.GroupName

// Write makes a file that Load reads.
func (c *Config) Write(file string) error {
	data, err := yaml.Marshal(c.Whole())
	if err == nil {
		err = os.WriteFile(file, data, 0o644)
	}
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}

// collect notes which fields are set. What kubeadm writes for a default is not: null, "", 0s, false, an empty list.
func (c *Config) collect(prefix string, raw map[string]any) {
	for name, value := range raw {
		switch value := value.(type) {
		case map[string]any:
			c.collect(prefix+name+".", value)
		case []any:
			c.Set[prefix+name] = len(value) > 0
		default:
			c.Set[prefix+name] = !slices.Contains([]any{nil, "", "0", "0s", 0.0, false}, value)
		}
	}
}

// Default fills in what is not set. The defaults are those of the API's documentation, but for the mode, and for
// minSyncPeriod where a change costs so little that there is nothing to collect.
func (c *Config) Default() {
	fill(&c.BindAddress, "0.0.0.0")
	c.defaultServers()
	fill(&c.Mode, NFTables)
	fill(&c.DetectLocalMode, ClusterCIDR)
	fill(&c.ClientConnection.ContentType, "application/vnd.kubernetes.protobuf")
	fill(&c.ClientConnection.QPS, 5)
	fill(&c.ClientConnection.Burst, 10)
	fillPointer(&c.OOMScoreAdj, -999)
	fillPointer(&c.IPTables.MasqueradeBit, 14)
	fillPointer(&c.NFTables.MasqueradeBit, 14)
	fillPointer(&c.IPTables.LocalhostNodePorts, true)
	fillPointer(&c.Conntrack.MaxPerCore, 32*1024)
	fillPointer(&c.Conntrack.Min, 128*1024)
	fillPointer(&c.Conntrack.TCPEstablishedTimeout, metav1.Duration{Duration: 24 * time.Hour})
	fillPointer(&c.Conntrack.TCPCloseWaitTimeout, metav1.Duration{Duration: time.Hour})
	if !c.Set["iptables.minSyncPeriod"] { // a flag may set it to 0
		fill(&c.IPTables.MinSyncPeriod.Duration, time.Second)
	}
	fill(&c.IPVS.Scheduler, "rr")
	if len(c.NodePortAddresses) == 0 && c.Mode == NFTables {
		c.NodePortAddresses = []string{primary}
	}
}

// The ports of the servers where none is given.
const (
	healthzPort = 10256
	metricsPort = 10249
)

// defaultServers has them listen in the family of bindAddress.
func (c *Config) defaultServers() {
	all, self := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if addr, err := netip.ParseAddr(c.BindAddress); err == nil && !addr.Unmap().Is4() {
		all, self = netip.IPv6Unspecified(), netip.IPv6Loopback()
	}
	fill(&c.HealthzBindAddress, all.String())
	fill(&c.MetricsBindAddress, self.String())
	c.HealthzBindAddress = withPort(c.HealthzBindAddress, healthzPort)
	c.MetricsBindAddress = withPort(c.MetricsBindAddress, metricsPort)
}

// withPort adds a port to an address that has none.
func withPort(addr string, port uint16) string {
	if ip, err := netip.ParseAddr(addr); err == nil {
		return netip.AddrPortFrom(ip, port).String()
	}
	return addr
}

func fill[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

func fillPointer[T any](to **T, value T) {
	if *to == nil {
		*to = &value
	}
}

// MinSyncPeriod lies between the begins of changes to the kernel.
func (c *Config) MinSyncPeriod() time.Duration {
	switch c.Mode {
	case IPTables:
		return c.IPTables.MinSyncPeriod.Duration
	case IPVS:
		return c.IPVS.MinSyncPeriod.Duration
	}
	return c.NFTables.MinSyncPeriod.Duration
}

// ignored are the fields that are not honoured, and why. Every other one is.
var ignored = map[string]string{
	"featureGates":                "features are not switched by gates",
	"logging":                     "see --log-level",
	"configSyncPeriod":            "what a watch says is not repeated",
	"portRange":                   "kube-proxy doesn't use it either",
	"showHiddenMetricsForVersion": "no metric is hidden",
	"iptables.syncPeriod":         "what others change is noticed when they do",
	"nftables.syncPeriod":         "what others change is noticed when they do",
	"ipvs.syncPeriod":             "what others change is noticed when they do",
	"winkernel":                   "this is for Linux",
	"windowsRunAsService":         "this is for Linux",
}

// Warnings names the fields that were set and are not honoured, sorted.
func (c *Config) Warnings() []string {
	var out []string
	if c.lenient != nil {
		out = append(out, fmt.Sprintf("the configuration's file has mistakes, which are passed over: %v", c.lenient))
	}
	for path, why := range ignored {
		if c.isSet(path) {
			out = append(out, fmt.Sprintf("%s is set and has no effect here: %s", path, why))
		}
	}
	slices.Sort(out)
	return out
}

func (c *Config) isSet(path string) bool {
	for field, set := range c.Set {
		if set && (field == path || strings.HasPrefix(field, path+".")) {
			return true
		}
	}
	return false
}
