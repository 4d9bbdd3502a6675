package config

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func parseFlags(args ...string) (*Flags, *pflag.FlagSet, error) {
	f, fs := &Flags{}, pflag.NewFlagSet("proxy", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	f.AddTo(fs)
	return f, fs, fs.Parse(args)
}

// Each flag sets the field that a file would.
func TestFlags(t *testing.T) {
	for _, tt := range []struct{ args, file string }{
		{"--kubeconfig=/k --kube-api-content-type=application/json --kube-api-burst=7 --kube-api-qps=2.5",
			"clientConnection: {kubeconfig: /k, contentType: application/json, burst: 7, qps: 2.5}\n"},
		{"--hostname-override=n --bind-address=192.0.2.1 --bind-address-hard-fail", "hostnameOverride: 'n'\nbindAddress: 192.0.2.1\nbindAddressHardFail: true\n"},
		{"--healthz-bind-address=192.0.2.1:1 --metrics-bind-address=192.0.2.1 --profiling=true",
			"healthzBindAddress: 192.0.2.1:1\nmetricsBindAddress: 192.0.2.1:10249\nenableProfiling: true\n"},
		{"--healthz-port=5 --metrics-port=0", "healthzBindAddress: 0.0.0.0:5\nmetricsBindAddress: 127.0.0.1:0\n"},
		{"--proxy-mode=ipvs --cluster-cidr=10.0.0.0/8,fd00::/64 --detect-local-mode=NodeCIDR", "mode: ipvs\nclusterCIDR: 10.0.0.0/8,fd00::/64\ndetectLocalMode: NodeCIDR\n"},
		{"--pod-bridge-interface=cni0 --pod-interface-name-prefix=veth", "detectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}\n"},
		{"--nodeport-addresses=10.0.0.0/8,primary", "nodePortAddresses: [10.0.0.0/8, primary]\n"},
		{"--nodeport-addresses=", ""},
		{"--masquerade-all --iptables-masquerade-bit=1 --nftables-masquerade-bit=2 --iptables-localhost-nodeports=false",
			"iptables: {masqueradeAll: true, masqueradeBit: 1, localhostNodePorts: false}\nnftables: {masqueradeAll: true, masqueradeBit: 2}\n"},
		{"--iptables-min-sync-period=3s --ipvs-min-sync-period=4s", "iptables: {minSyncPeriod: 3s}\nipvs: {minSyncPeriod: 4s}\n"},
		{"--ipvs-scheduler=wrr --ipvs-strict-arp --ipvs-exclude-cidrs=10.0.0.0/8,10.1.0.0/16 --ipvs-tcp-timeout=1s --ipvs-tcpfin-timeout=2s --ipvs-udp-timeout=3s",
			"ipvs: {scheduler: wrr, strictARP: true, excludeCIDRs: [10.0.0.0/8, 10.1.0.0/16], tcpTimeout: 1s, tcpFinTimeout: 2s, udpTimeout: 3s}\n"},
		{"--oom-score-adj=5 --conntrack-max-per-core=6 --conntrack-min=7 --conntrack-tcp-be-liberal",
			"oomScoreAdj: 5\nconntrack: {maxPerCore: 6, min: 7, tcpBeLiberal: true}\n"},
		{"--conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=2s --conntrack-udp-timeout=3s --conntrack-udp-timeout-stream=4s",
			"conntrack: {tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 2s, udpTimeout: 3s, udpStreamTimeout: 4s}\n"},
	} {
		f, _, err := parseFlags(strings.Fields(tt.args)...)
		if err != nil {
			t.Errorf("%s: %v", tt.args, err)
			continue
		}
		got := &Config{Set: map[string]bool{}}
		f.Apply(got)
		got.Default()
		want := mustRead(t, tt.file)
		want.APIVersion, want.Kind = "", ""
		if diff := cmp.Diff(want.KubeProxyConfiguration, got.KubeProxyConfiguration); diff != "" {
			t.Errorf("%s: -file +flags:\n%s", tt.args, diff)
		}
	}
}

// A flag wins over the file, whatever its value.
func TestFlagsWin(t *testing.T) {
	c, err := read(t, head+"mode: ipvs\niptables: {minSyncPeriod: 5s}\nbindAddressHardFail: true\n")
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := parseFlags("--proxy-mode=nftables", "--proxy-mode=iptables", "--iptables-min-sync-period=0", "--bind-address-hard-fail=false")
	if err != nil {
		t.Fatal(err)
	}
	f.Apply(c)
	c.Default()
	if c.Mode != IPTables || c.MinSyncPeriod() != 0 || c.BindAddressHardFail {
		t.Errorf("mode %s, min %s, hard fail %v", c.Mode, c.MinSyncPeriod(), c.BindAddressHardFail)
	}
}

// kubeProxyFlags are those of kube-proxy 1.37, but for --version and --help.
const kubeProxyFlags = `bind-address bind-address-hard-fail cleanup cluster-cidr config config-sync-period conntrack-max-per-core conntrack-min
	conntrack-tcp-be-liberal conntrack-tcp-timeout-close-wait conntrack-tcp-timeout-established conntrack-udp-timeout
	conntrack-udp-timeout-stream detect-local-mode feature-gates healthz-bind-address healthz-port hostname-override init-only
	iptables-localhost-nodeports iptables-masquerade-bit iptables-min-sync-period iptables-sync-period ipvs-exclude-cidrs
	ipvs-min-sync-period ipvs-scheduler ipvs-strict-arp ipvs-sync-period ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout
	kube-api-burst kube-api-content-type kube-api-qps kubeconfig log-flush-frequency logging-format masquerade-all master
	metrics-bind-address metrics-port nodeport-addresses oom-score-adj pod-bridge-interface pod-interface-name-prefix profiling
	proxy-mode show-hidden-metrics-for-version v vmodule write-config-to`

// A command line that was kube-proxy's is taken, and what of it has no effect is told.
func TestKubeProxyFlags(t *testing.T) {
	_, fs, err := parseFlags()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(kubeProxyFlags)
	for _, name := range names {
		if fs.Lookup(name) == nil {
			t.Errorf("no flag --%s", name)
		}
	}
	fs.VisitAll(func(f *pflag.Flag) {
		ours := []string{"services-dir", "kubelet-url", "nftables-masquerade-bit"}
		if !slices.Contains(names, f.Name) && !slices.Contains(ours, f.Name) {
			t.Errorf("--%s is neither kube-proxy's nor known to be ours", f.Name)
		}
	})
	for name, field := range ignoredFlags {
		f, _, err := parseFlags("--" + name + "=1s")
		if err != nil {
			t.Fatal(err)
		}
		c := &Config{Set: map[string]bool{}}
		f.Apply(c)
		c.Default()
		if w := c.Warnings(); len(w) != 1 || !strings.HasPrefix(w[0], field+" ") {
			t.Errorf("--%s: warnings %q; want one for %s", name, w, field)
		}
	}
}

func TestFlagMistakes(t *testing.T) {
	for _, tt := range []struct{ arg, want string }{
		{"--conntrack-min=many", `"many": write a whole number`},
		{"--kube-api-qps=fast", `"fast": write a number`},
		{"--masquerade-all=perhaps", `"perhaps": write true or false`},
		{"--ipvs-udp-timeout=5", `"5": write a time, as 30s or 1h`},
		{"--no-such-flag", "no-such-flag"},
	} {
		if _, _, err := parseFlags(tt.arg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want one with %s", tt.arg, err, tt.want)
		}
	}
}
