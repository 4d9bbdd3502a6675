package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// Flags are those of kube-proxy, and our own.
type Flags struct {
	File    string // --config
	Cleanup bool
	Master  string
	// ServicesDir is a directory of Services instead of an API server, PodsURL the API of the node's kubelet, whose pods are
	// the endpoints of those with a selector.
	ServicesDir, PodsURL string

	overrides []func(*Config) // in the order of flags on the command line
}

// AddTo defines the flags.
func (f *Flags) AddTo(fs *pflag.FlagSet) {
	fs.StringVar(&f.File, "config", "", "`file` with a KubeProxyConfiguration; flags win over it")
	fs.BoolVar(&f.Cleanup, "cleanup", false, "remove the rules of all modes and exit")
	fs.StringVar(&f.Master, "master", "", "`URL` of the API server, instead of the one in the kubeconfig")
	fs.StringVar(&f.ServicesDir, "services-dir", "", "`directory` of Services, EndpointSlices and the Node, instead of an API server")
	fs.StringVar(&f.PodsURL, "kubelet-url", "", "`URL` of the node's kubelet, whose pods serve Services of --services-dir, as https://127.0.0.1:10250")
	f.text(fs, "kubeconfig", "`file` that says how to reach the API server", func(c *Config, v string) { c.ClientConnection.Kubeconfig = v })
	f.text(fs, "hostname-override", "the node's `name`, instead of the hostname", func(c *Config, v string) { c.HostnameOverride = v })
	f.text(fs, "proxy-mode", "nftables, iptables or ipvs", func(c *Config, v string) { c.Mode = kubeproxy.ProxyMode(v) })
	f.text(fs, "cluster-cidr", "`range` of pods' addresses in the cluster, one of each family with a comma between", func(c *Config, v string) { c.ClusterCIDR = v })
	f.text(fs, "detect-local-mode", "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix: how to tell pods' packets from others", func(c *Config, v string) { c.DetectLocalMode = kubeproxy.LocalMode(v) })
	f.text(fs, "pod-bridge-interface", "`bridge` at which pods' packets come in", func(c *Config, v string) { c.DetectLocal.BridgeInterface = v })
	f.text(fs, "pod-interface-name-prefix", "how `names` of interfaces begin at which pods' packets come in", func(c *Config, v string) { c.DetectLocal.InterfaceNamePrefix = v })
	f.text(fs, "nodeport-addresses", "`ranges` of addresses that serve NodePorts, with commas between, or primary", func(c *Config, v string) { c.NodePortAddresses = strings.Split(v, ",") })
	f.text(fs, "bind-address", "the node's `address`, where the API server knows none", func(c *Config, v string) { c.BindAddress = v })
	f.text(fs, "healthz-bind-address", "`address` and port of the health server; port 0 for none", func(c *Config, v string) { c.HealthzBindAddress = v })
	f.text(fs, "metrics-bind-address", "`address` and port of the metrics server; port 0 for none", func(c *Config, v string) { c.MetricsBindAddress = v })
	f.text(fs, "ipvs-scheduler", "`name` of the scheduler in mode ipvs", func(c *Config, v string) { c.IPVS.Scheduler = v })
	f.flag(fs, "masquerade-all", "masquerade everything that is sent to a ClusterIP", func(c *Config, v bool) { c.IPTables.MasqueradeAll, c.NFTables.MasqueradeAll = v, v })
	f.flag(fs, "ipvs-strict-arp", "answer ARP only for addresses of the interface that is asked", func(c *Config, v bool) { c.IPVS.StrictARP = v })
	f.flag(fs, "profiling", "serve /debug/pprof at the metrics server", func(c *Config, v bool) { c.EnableProfiling = v })
	f.flag(fs, "bind-address-hard-fail", "exit if a server can't listen", func(c *Config, v bool) { c.BindAddressHardFail = v })
	f.flag(fs, "iptables-localhost-nodeports", "serve NodePorts on 127.0.0.1 in mode iptables", func(c *Config, v bool) { c.IPTables.LocalhostNodePorts = &v })
	f.number(fs, "iptables-masquerade-bit", "the `bit` of the mark that says to masquerade, in mode iptables", func(c *Config, v int32) { c.IPTables.MasqueradeBit = &v })
	f.number(fs, "nftables-masquerade-bit", "the `bit` of the mark that says to masquerade, in mode nftables", func(c *Config, v int32) { c.NFTables.MasqueradeBit = &v })
	f.number(fs, "oom-score-adj", "how willingly the kernel kills this process, -1000 to 1000", func(c *Config, v int32) { c.OOMScoreAdj = &v })
	f.number(fs, "conntrack-max-per-core", "connections to track for each CPU; 0 leaves the limit alone", func(c *Config, v int32) { c.Conntrack.MaxPerCore = &v })
	f.number(fs, "conntrack-min", "connections to track at least", func(c *Config, v int32) { c.Conntrack.Min = &v })
	fs.IntP("v", "v", 0, "accepted, without effect; see --log-level")
	_ = fs.MarkHidden("v")
}

// AddAddressTo defines the flags that say where a running proxy is.
func (f *Flags) AddAddressTo(fs *pflag.FlagSet) {
	fs.StringVar(&f.File, "config", "", "`file` with the KubeProxyConfiguration of the proxy that runs")
	f.text(fs, "metrics-bind-address", "`address` and port of its metrics server (default 127.0.0.1:10249)", func(c *Config, v string) { c.MetricsBindAddress = v })
}

// Apply lets flags replace fields.
func (f *Flags) Apply(c *Config) {
	for _, override := range f.overrides {
		override(c)
	}
}

func (f *Flags) text(fs *pflag.FlagSet, name, usage string, set func(*Config, string)) {
	fs.Func(name, usage, func(v string) error {
		f.overrides = append(f.overrides, func(c *Config) { set(c, v) })
		return nil
	})
}

func (f *Flags) flag(fs *pflag.FlagSet, name, usage string, set func(*Config, bool)) {
	fs.BoolFunc(name, usage, func(v string) error {
		b, err := strconv.ParseBool(v)
		f.overrides = append(f.overrides, func(c *Config) { set(c, b) })
		return err
	})
}

func (f *Flags) number(fs *pflag.FlagSet, name, usage string, set func(*Config, int32)) {
	fs.Func(name, usage, func(v string) error {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return fmt.Errorf("%q is not a number", v)
		}
		f.overrides = append(f.overrides, func(c *Config) { set(c, int32(n)) })
		return nil
	})
}
