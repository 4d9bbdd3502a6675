package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// Flags are those of kube-proxy, and our own.
type Flags struct {
	File    string // --config
	Cleanup bool
	// InitOnly has what needs more than CAP_NET_ADMIN done, and then ends.
	InitOnly bool
	// WriteConfigTo is a file for the configuration with its defaults.
	WriteConfigTo string
	Master        string
	// ServicesDir is a directory of Services instead of an API server, PodsURL the API of the node's kubelet, whose pods are
	// the endpoints of those with a selector.
	ServicesDir, PodsURL string

	overrides []func(*Config) // in the order of flags on the command line
}

// AddTo defines the flags.
func (f *Flags) AddTo(fs *pflag.FlagSet) {
	fs.StringVar(&f.File, "config", "", "`file` with a KubeProxyConfiguration; flags win over it")
	fs.BoolVar(&f.Cleanup, "cleanup", false, "remove the rules of all modes and exit")
	fs.BoolVar(&f.InitOnly, "init-only", false, "set sysctls and exit; what runs after that needs CAP_NET_ADMIN alone")
	fs.StringVar(&f.WriteConfigTo, "write-config-to", "", "write the configuration, with its defaults, to this `file` and exit")
	f.addSources(fs)
	f.addServers(fs)
	f.addRules(fs)
	f.addIPVS(fs)
	f.addKernel(fs)
	f.addIgnored(fs)
}

// AddAddressTo defines the flags that say where a running proxy is.
func (f *Flags) AddAddressTo(fs *pflag.FlagSet) {
	fs.StringVar(&f.File, "config", "", "`file` with the KubeProxyConfiguration of the proxy that runs")
	f.text(fs, "metrics-bind-address", "`address` and port of its metrics server (default 127.0.0.1:10249)", func(c *Config, v string) { c.MetricsBindAddress = v })
}

func (f *Flags) addSources(fs *pflag.FlagSet) {
	fs.StringVar(&f.Master, "master", "", "`URL` of the API server, instead of the one in the kubeconfig")
	fs.StringVar(&f.ServicesDir, "services-dir", "", "`directory` of Services, EndpointSlices and the Node, instead of an API server")
	fs.StringVar(&f.PodsURL, "kubelet-url", "", "`URL` of the node's kubelet, whose pods serve Services of --services-dir, as https://127.0.0.1:10250")
	f.text(fs, "kubeconfig", "`file` that says how to reach the API server", func(c *Config, v string) { c.ClientConnection.Kubeconfig = v })
	f.text(fs, "kube-api-content-type", "`type` of what is sent to the API server", func(c *Config, v string) { c.ClientConnection.ContentType = v })
	f.number(fs, "kube-api-burst", "`requests` to the API server at once", func(c *Config, v int32) { c.ClientConnection.Burst = v })
	add(f, fs, "kube-api-qps", "`requests` to the API server in a second", parseFloat, func(c *Config, v float32) { c.ClientConnection.QPS = v })
	f.text(fs, "hostname-override", "the node's `name`, instead of the hostname", func(c *Config, v string) { c.HostnameOverride = v })
	f.text(fs, "bind-address", "the node's `address`, before those that the API server knows", func(c *Config, v string) { c.BindAddress = v })
}

func (f *Flags) addServers(fs *pflag.FlagSet) {
	f.text(fs, "healthz-bind-address", "`address` and port of the health server; port 0 for none", func(c *Config, v string) { c.HealthzBindAddress = v })
	f.text(fs, "metrics-bind-address", "`address` and port of the metrics server; port 0 for none", func(c *Config, v string) { c.MetricsBindAddress = v })
	f.port(fs, "healthz-port", healthzPort, func(c *Config) *string { return &c.HealthzBindAddress })
	f.port(fs, "metrics-port", metricsPort, func(c *Config) *string { return &c.MetricsBindAddress })
	f.flag(fs, "profiling", "serve /debug/pprof at the metrics server", func(c *Config, v bool) { c.EnableProfiling = v })
	f.flag(fs, "bind-address-hard-fail", "exit if a server can't listen", func(c *Config, v bool) { c.BindAddressHardFail = v })
}

func (f *Flags) addRules(fs *pflag.FlagSet) {
	f.text(fs, "proxy-mode", "nftables, iptables or ipvs", func(c *Config, v string) { c.Mode = kubeproxy.ProxyMode(v) })
	f.text(fs, "cluster-cidr", "`range` of pods' addresses in the cluster, one of each family with a comma between", func(c *Config, v string) { c.ClusterCIDR = v })
	f.text(fs, "detect-local-mode", "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix: how to tell pods' packets from others", func(c *Config, v string) { c.DetectLocalMode = kubeproxy.LocalMode(v) })
	f.text(fs, "pod-bridge-interface", "`bridge` at which pods' packets come in", func(c *Config, v string) { c.DetectLocal.BridgeInterface = v })
	f.text(fs, "pod-interface-name-prefix", "how `names` of interfaces begin at which pods' packets come in", func(c *Config, v string) { c.DetectLocal.InterfaceNamePrefix = v })
	f.list(fs, "nodeport-addresses", "`ranges` of addresses that serve NodePorts, with commas between, or primary, localhost or all", func(c *Config, v []string) { c.NodePortAddresses = v })
	f.flag(fs, "masquerade-all", "masquerade everything that is sent to a ClusterIP", func(c *Config, v bool) { c.IPTables.MasqueradeAll, c.NFTables.MasqueradeAll = v, v })
	f.flag(fs, "iptables-localhost-nodeports", "serve NodePorts on 127.0.0.1 in mode iptables", func(c *Config, v bool) { c.IPTables.LocalhostNodePorts = &v })
	f.number(fs, "iptables-masquerade-bit", "the `bit` of the mark that says to masquerade, in modes iptables and ipvs", func(c *Config, v int32) { c.IPTables.MasqueradeBit = &v })
	f.number(fs, "nftables-masquerade-bit", "the `bit` of the mark that says to masquerade, in mode nftables", func(c *Config, v int32) { c.NFTables.MasqueradeBit = &v })
	f.duration(fs, "iptables-min-sync-period", "`time` between the begins of changes, in mode iptables", func(c *Config, v time.Duration) {
		c.IPTables.MinSyncPeriod.Duration = v
		c.Set["iptables.minSyncPeriod"] = true
	})
}

func (f *Flags) addIPVS(fs *pflag.FlagSet) {
	f.text(fs, "ipvs-scheduler", "`name` of the scheduler in mode ipvs", func(c *Config, v string) { c.IPVS.Scheduler = v })
	f.flag(fs, "ipvs-strict-arp", "answer ARP only for addresses of the interface that is asked", func(c *Config, v bool) { c.IPVS.StrictARP = v })
	f.list(fs, "ipvs-exclude-cidrs", "`ranges` of virtual servers that are somebody else's", func(c *Config, v []string) { c.IPVS.ExcludeCIDRs = v })
	f.duration(fs, "ipvs-min-sync-period", "`time` between the begins of changes, in mode ipvs", func(c *Config, v time.Duration) { c.IPVS.MinSyncPeriod.Duration = v })
	f.duration(fs, "ipvs-tcp-timeout", "`time` that an idle TCP connection is kept; 0 leaves it alone", func(c *Config, v time.Duration) { c.IPVS.TCPTimeout.Duration = v })
	f.duration(fs, "ipvs-tcpfin-timeout", "`time` that a TCP connection is kept after a FIN; 0 leaves it alone", func(c *Config, v time.Duration) { c.IPVS.TCPFinTimeout.Duration = v })
	f.duration(fs, "ipvs-udp-timeout", "`time` that an idle UDP flow is kept; 0 leaves it alone", func(c *Config, v time.Duration) { c.IPVS.UDPTimeout.Duration = v })
}

func (f *Flags) addKernel(fs *pflag.FlagSet) {
	f.number(fs, "oom-score-adj", "how willingly the kernel kills this process, -1000 to 1000", func(c *Config, v int32) { c.OOMScoreAdj = &v })
	f.number(fs, "conntrack-max-per-core", "connections to track for each CPU; 0 leaves the limit alone", func(c *Config, v int32) { c.Conntrack.MaxPerCore = &v })
	f.number(fs, "conntrack-min", "connections to track at least", func(c *Config, v int32) { c.Conntrack.Min = &v })
	f.flag(fs, "conntrack-tcp-be-liberal", "take packets outside of a TCP connection's window for valid", func(c *Config, v bool) { c.Conntrack.TCPBeLiberal = v })
	f.duration(fs, "conntrack-tcp-timeout-established", "`time` that an idle TCP connection is tracked; 0 leaves it alone", func(c *Config, v time.Duration) { c.Conntrack.TCPEstablishedTimeout = &metav1.Duration{Duration: v} })
	f.duration(fs, "conntrack-tcp-timeout-close-wait", "`time` that a half-closed TCP connection is tracked; 0 leaves it alone", func(c *Config, v time.Duration) { c.Conntrack.TCPCloseWaitTimeout = &metav1.Duration{Duration: v} })
	f.duration(fs, "conntrack-udp-timeout", "`time` that an unanswered UDP flow is tracked; 0 leaves it alone", func(c *Config, v time.Duration) { c.Conntrack.UDPTimeout.Duration = v })
	f.duration(fs, "conntrack-udp-timeout-stream", "`time` that an answered UDP flow is tracked; 0 leaves it alone", func(c *Config, v time.Duration) { c.Conntrack.UDPStreamTimeout.Duration = v })
}

// ignoredFlags are kube-proxy's, and the fields that they set, which are not honoured.
var ignoredFlags = map[string]string{
	"config-sync-period": "configSyncPeriod", "feature-gates": "featureGates", "iptables-sync-period": "iptables.syncPeriod",
	"ipvs-sync-period": "ipvs.syncPeriod", "log-flush-frequency": "logging", "logging-format": "logging",
	"show-hidden-metrics-for-version": "showHiddenMetricsForVersion", "vmodule": "logging",
}

// addIgnored has whoever sets such a flag warned, and not stopped: the command line is kube-proxy's.
func (f *Flags) addIgnored(fs *pflag.FlagSet) {
	for name, field := range ignoredFlags {
		f.text(fs, name, "without effect", func(c *Config, _ string) { c.Set[field] = true })
		_ = fs.MarkHidden(name) // fails for a flag that isn't there
	}
	fs.IntP("v", "v", 0, "accepted, without effect; see --log-level")
	_ = fs.MarkHidden("v")
}

// Apply lets flags replace fields.
func (f *Flags) Apply(c *Config) {
	for _, override := range f.overrides {
		override(c)
	}
}

// add defines a flag that replaces a field.
func add[T any](f *Flags, fs *pflag.FlagSet, name, usage string, parse func(string) (T, error), set func(*Config, T)) {
	fs.Func(name, usage, func(text string) error {
		v, err := parse(text)
		if err != nil {
			return err
		}
		f.overrides = append(f.overrides, func(c *Config) { set(c, v) })
		return nil
	})
}

func (f *Flags) text(fs *pflag.FlagSet, name, usage string, set func(*Config, string)) {
	add(f, fs, name, usage, func(text string) (string, error) { return text, nil }, set)
}

// list takes nothing for an empty list.
func (f *Flags) list(fs *pflag.FlagSet, name, usage string, set func(*Config, []string)) {
	add(f, fs, name, usage, func(text string) ([]string, error) {
		if text == "" {
			return nil, nil
		}
		return strings.Split(text, ","), nil
	}, set)
}

func (f *Flags) flag(fs *pflag.FlagSet, name, usage string, set func(*Config, bool)) {
	fs.BoolFunc(name, usage, func(text string) error {
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q: write true or false", text)
		}
		f.overrides = append(f.overrides, func(c *Config) { set(c, b) })
		return nil
	})
}

func (f *Flags) number(fs *pflag.FlagSet, name, usage string, set func(*Config, int32)) {
	add(f, fs, name, usage, func(text string) (int32, error) {
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%q: write a whole number", text)
		}
		return int32(n), nil
	}, set)
}

// port is of an address without its own. Kube-proxy has such flags for those who used them before there were addresses.
func (f *Flags) port(fs *pflag.FlagSet, name string, usual uint16, of func(*Config) *string) {
	f.number(fs, name, fmt.Sprintf("`port` of the server, %d where none is set", usual), func(c *Config, v int32) {
		c.defaultServers()
		if addr, err := netip.ParseAddrPort(*of(c)); err == nil { // Validate tells of others
			*of(c) = fmt.Sprintf("%s:%d", strings.TrimSuffix(netip.AddrPortFrom(addr.Addr(), 0).String(), ":0"), v)
		}
	})
	_ = fs.MarkHidden(name)
}

func parseFloat(text string) (float32, error) {
	n, err := strconv.ParseFloat(text, 32)
	if err != nil {
		return 0, fmt.Errorf("%q: write a number", text)
	}
	return float32(n), nil
}

func (f *Flags) duration(fs *pflag.FlagSet, name, usage string, set func(*Config, time.Duration)) {
	add(f, fs, name, usage, func(text string) (time.Duration, error) {
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, fmt.Errorf("%q: write a time, as 30s or 1h", text)
		}
		return d, nil
	}, set)
}
