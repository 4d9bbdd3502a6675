package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
)

const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

// read is a file's configuration, without the defaults.
func read(t *testing.T, text string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(file)
}

func mustRead(t *testing.T, text string) *Config {
	t.Helper()
	c, err := read(t, head+text)
	if err != nil {
		t.Fatal(err)
	}
	c.Default()
	return c
}

// kubeadm's file has all fields, most of them empty: none of that is worth a warning, or anything but the default.
func TestKubeadmFile(t *testing.T) {
	data, err := os.ReadFile("testdata/kubeadm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := read(t, string(data))
	if err != nil {
		t.Fatal(err)
	}
	c.Default()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if w := c.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	want := mustRead(t, "clusterCIDR: 10.244.0.0/16\nclientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}\n")
	want.NodePortAddresses, c.NodePortAddresses = nil, nil // no list, and an empty one
	want.Logging, want.FeatureGates = c.Logging, c.FeatureGates
	if diff := cmp.Diff(want.KubeProxyConfiguration, c.KubeProxyConfiguration); diff != "" {
		t.Errorf("-defaults +read:\n%s", diff)
	}
}

// What --write-config-to writes is read back as it was.
func TestWrite(t *testing.T) {
	c := mustRead(t, "mode: iptables\nclusterCIDR: 10.1.0.0/16\noomScoreAdj: 5\n")
	file := filepath.Join(t.TempDir(), "written.yaml")
	if err := c.Write(file); err != nil {
		t.Fatal(err)
	}
	again, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	again.Default()
	if diff := cmp.Diff(c.KubeProxyConfiguration, again.KubeProxyConfiguration); diff != "" {
		t.Errorf("-written +read:\n%s", diff)
	}
	if w := again.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	if err := c.Write(filepath.Join(t.TempDir(), "no", "dir")); err == nil {
		t.Error("written to where no file can be")
	}
}

func TestLoadMistakes(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{head + "oomScoreAdj: low\n", "oomScoreAdj"},
		{head + "iptables: {minSyncPeriod: soon}\n", `"soon"`},
		{"apiVersion: v1\nkind: Config\n", "is v1 Config; write apiVersion: kubeproxy.config.k8s.io/v1alpha1 and kind: KubeProxyConfiguration"},
		{"mode: nftables\n", "write apiVersion"},
		{"\x00", "config"},
	} {
		if _, err := read(t, tt.text); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "config.yaml") {
			t.Errorf("%q: %v; want one of the file that has %q", tt.text, err, tt.want)
		}
	}
	if _, err := Load("/nowhere/config.yaml"); err == nil || !strings.Contains(err.Error(), "/nowhere/config.yaml") {
		t.Errorf("a file that isn't there: %v", err)
	}
}

// What a kube-proxy warns of is read all the same.
func TestLenient(t *testing.T) {
	for _, tt := range []struct{ text, warning string }{
		{"modus: nftables\nmode: ipvs\n", `unknown field "modus"`},
		{"mode: ipvs\nnftables: {masqueradeBits: 3}\n", `unknown field "masqueradeBits"`},
		{"mode: nftables\nmode: ipvs\n", `key "mode" already set`},
	} {
		c := mustRead(t, tt.text)
		if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], tt.warning) {
			t.Errorf("%q: warnings %q, want one of %s", tt.text, w, tt.warning)
		}
		if c.Mode != IPVS {
			t.Errorf("%q: mode %s", tt.text, c.Mode)
		}
	}
}

// Each mistake is told by field, value and remedy, and all of them at once.
func TestValidate(t *testing.T) {
	mistakes := []struct{ text, want string }{
		{"mode: userspace\n", `mode "userspace": write nftables, iptables or ipvs`},
		{"bindAddress: here\n", `bindAddress "here": write an IP address`},
		{"healthzBindAddress: localhost:10256\n", `healthzBindAddress "localhost:10256": write an IP address and a port, as 127.0.0.1:10249; port 0 is for no server`},
		{"metricsBindAddress: 127.0.0.1:70000\n", `metricsBindAddress "127.0.0.1:70000": write an IP address and a port`},
		{"iptables: {masqueradeBit: 32}\n", "iptables.masqueradeBit 32: must be from 0 to 31"},
		{"nftables: {masqueradeBit: -1}\n", "nftables.masqueradeBit -1: must be from 0 to 31"},
		{"oomScoreAdj: 1001\n", "oomScoreAdj 1001: must be from -1000 to 1000"},
		{"conntrack: {maxPerCore: -1, min: -2}\n", "conntrack.min -2: must not be negative"},
		{"conntrack: {maxPerCore: -1}\n", "conntrack.maxPerCore -1: must not be negative"},
		{"conntrack: {tcpEstablishedTimeout: -1s}\n", "conntrack.tcpEstablishedTimeout -1s: must not be negative"},
		{"conntrack: {tcpCloseWaitTimeout: -1s}\n", "conntrack.tcpCloseWaitTimeout -1s: must not be negative"},
		{"conntrack: {udpTimeout: -1s}\n", "conntrack.udpTimeout -1s: must not be negative"},
		{"conntrack: {udpStreamTimeout: -1s}\n", "conntrack.udpStreamTimeout -1s: must not be negative"},
		{"iptables: {minSyncPeriod: -1s}\n", "iptables.minSyncPeriod -1s: must not be negative"},
		{"nftables: {minSyncPeriod: -1s}\n", "nftables.minSyncPeriod -1s: must not be negative"},
		{"ipvs: {minSyncPeriod: -1s, tcpTimeout: -2s, tcpFinTimeout: -3s, udpTimeout: -4s}\n", "ipvs.tcpFinTimeout -3s: must not be negative"},
		{"clusterCIDR: 10.0.0.0/8,10.1.0.0\n", `clusterCIDR "10.1.0.0": write an address and a number of bits, as 10.0.0.0/8`},
		{"ipvs: {excludeCIDRs: [10.0.0.0/8, 10.0.0.0/33]}\n", `ipvs.excludeCIDRs[1] "10.0.0.0/33": write an address`},
		{"nodePortAddresses: [primary, 10.0.0.1]\n", `nodePortAddresses[1] "10.0.0.1": write a range, as 10.0.0.0/8, or primary, localhost or all`},
		{"detectLocalMode: Magic\n", `detectLocalMode "Magic": write ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix`},
		{"detectLocalMode: BridgeInterface\n", `detectLocal.bridgeInterface "": write 1 to 15 letters, digits and _.:@-, as detectLocalMode asks for it`},
		{"detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: 'a b'}\n", `detectLocal.interfaceNamePrefix "a b": write`},
		{"detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: abcdefghijklmnop}\n", `detectLocal.bridgeInterface "abcdefghijklmnop": write`},
		{"clientConnection: {burst: -1}\n", "clientConnection.burst -1: must not be negative"},
	}
	for _, tt := range mistakes {
		if err := mustRead(t, tt.text).Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v; want %s", tt.text, err, tt.want)
		}
	}
	all := mustRead(t, "mode: userspace\nbindAddress: here\noomScoreAdj: 2000\n").Validate()
	if all == nil || strings.Count(all.Error(), "\n") != 2 {
		t.Errorf("three mistakes are told as %v", all)
	}
	for _, good := range []string{"", "mode: ipvs\n", "nodePortAddresses: [primary, localhost, all, 10.0.0.0/8]\n", "metricsBindAddress: 0.0.0.0:0\n",
		"clusterCIDR: '10.0.0.0/8, fd00::/64'\n", "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n"} {
		if err := mustRead(t, good).Validate(); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func TestDefaultServers(t *testing.T) {
	for _, tt := range []struct{ text, healthz, metrics string }{
		{"", "0.0.0.0:10256", "127.0.0.1:10249"},
		{"bindAddress: 192.0.2.1\n", "0.0.0.0:10256", "127.0.0.1:10249"},
		{"bindAddress: '2001:db8::1'\n", "[::]:10256", "[::1]:10249"},
		{"healthzBindAddress: 192.0.2.1\nmetricsBindAddress: '::'\n", "192.0.2.1:10256", "[::]:10249"},
		{"healthzBindAddress: 192.0.2.1:1\nmetricsBindAddress: '[::1]:0'\n", "192.0.2.1:1", "[::1]:0"},
	} {
		c := mustRead(t, tt.text)
		if c.HealthzBindAddress != tt.healthz || c.MetricsBindAddress != tt.metrics {
			t.Errorf("%q: healthz %s, metrics %s; want %s and %s", tt.text, c.HealthzBindAddress, c.MetricsBindAddress, tt.healthz, tt.metrics)
		}
	}
}

func TestMinSyncPeriod(t *testing.T) {
	for _, tt := range []struct {
		text string
		want time.Duration
	}{
		{"", 0},
		{"nftables: {minSyncPeriod: 2s}\n", 2 * time.Second},
		{"mode: iptables\n", time.Second},
		{"mode: iptables\niptables: {minSyncPeriod: 0s}\n", time.Second}, // as kube-proxy takes it
		{"mode: iptables\niptables: {minSyncPeriod: 5s}\nnftables: {minSyncPeriod: 2s}\n", 5 * time.Second},
		{"mode: ipvs\nipvs: {minSyncPeriod: 3s}\n", 3 * time.Second},
	} {
		if got := mustRead(t, tt.text).MinSyncPeriod(); got != tt.want {
			t.Errorf("%q: %v, want %v", tt.text, got, tt.want)
		}
	}
}

func facts() Facts {
	return Facts{
		NodeIPs:      parse(netip.ParseAddr, "192.0.2.1", "2001:db8::1"),
		Interfaces:   parse(netip.ParseAddr, "127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "10.0.0.1", "fd00::1"),
		PodCIDRs:     parse(netip.ParsePrefix, "10.244.1.0/24"),
		ServiceCIDRs: parse(netip.ParsePrefix, "10.96.0.0/16"),
		Families:     []model.Family{model.IPv4, model.IPv6},
	}
}

func parse[T any](one func(string) (T, error), texts ...string) []T {
	var out []T
	for _, text := range texts {
		v, err := one(text)
		if err != nil {
			panic(err)
		}
		out = append(out, v)
	}
	return out
}

func TestNetwork(t *testing.T) {
	base := func() model.Network {
		f := facts()
		return model.Network{Families: f.Families, NodeIPs: f.NodeIPs, ServiceCIDRs: f.ServiceCIDRs, MasqueradeMark: 1 << 14, NodePorts: f.NodeIPs}
	}
	all := func(n *model.Network) { n.NodePorts, n.AllNodePorts = nil, true }
	for _, tt := range []struct {
		text   string
		change func(n *model.Network)
	}{
		{"", func(*model.Network) {}},
		{"nftables: {masqueradeAll: true, masqueradeBit: 3}\n", func(n *model.Network) { n.MasqueradeAll, n.MasqueradeMark = true, 8 }},
		{"iptables: {masqueradeAll: true, masqueradeBit: 3}\n", func(*model.Network) {}}, // of another mode
		{"nftables: {masqueradeBit: 31}\n", func(n *model.Network) { n.MasqueradeMark = 1 << 31 }},
		{"mode: iptables\niptables: {masqueradeAll: true, masqueradeBit: 0}\n", func(n *model.Network) {
			all(n)
			n.MasqueradeAll, n.MasqueradeMark, n.LocalhostNodePorts = true, 1, true
		}},
		{"mode: iptables\niptables: {localhostNodePorts: false}\n", all},
		{"mode: ipvs\niptables: {masqueradeBit: 4}\n", func(n *model.Network) { all(n); n.MasqueradeMark = 16 }},
		{"conntrack: {tcpBeLiberal: true}\n", func(n *model.Network) { n.TCPBeLiberal = true }},
		{"clusterCIDR: 10.244.0.1/16, fd00:244::/64\n", func(n *model.Network) {
			n.Local.Prefixes = parse(netip.ParsePrefix, "10.244.0.0/16", "fd00:244::/64")
		}},
		{"detectLocalMode: NodeCIDR\nclusterCIDR: 10.244.0.0/16\n", func(n *model.Network) { n.Local.Prefixes = facts().PodCIDRs }},
		{"detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}\n", func(n *model.Network) { n.Local.Bridge = "cni0" }},
		{"detectLocalMode: InterfaceNamePrefix\ndetectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}\n", func(n *model.Network) { n.Local.InterfacePrefix = "veth" }},
	} {
		want := base()
		tt.change(&want)
		got, err := mustRead(t, tt.text).Network(facts())
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%q: -want +got:\n%s", tt.text, diff)
		}
	}
}

func TestNodePortAddresses(t *testing.T) {
	for _, tt := range []struct {
		list string
		want string // "all", or addresses
		move bool
	}{
		{"primary", "[192.0.2.1 2001:db8::1]", false},
		{"localhost", "[127.0.0.1 ::1]", false},
		{"all", "all", false},
		{"primary, all", "all", false},
		{"primary, localhost", "[127.0.0.1 192.0.2.1 ::1 2001:db8::1]", false},
		{"primary, 10.0.0.0/8", "[10.0.0.1 192.0.2.1 2001:db8::1]", true},
		{"10.0.0.0/8", "[10.0.0.1 ::1 2001:db8::1 fd00::1]", true}, // no range of IPv6 is all of it
		{"10.0.0.0/8, fd00::/64", "[10.0.0.1 fd00::1]", true},
		{"172.16.0.0/12, fd00::/64", "[fd00::1]", true},
		{"0.0.0.0/0, '::/0'", "all", true},
		{"0.0.0.0/0", "all", true},
		{"0.0.0.0/0, fd00::/64", "[10.0.0.1 127.0.0.1 192.0.2.1 fd00::1]", true},
	} {
		c := mustRead(t, "nodePortAddresses: ["+tt.list+"]\n")
		n, err := c.Network(facts())
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(n.NodePorts)
		if n.AllNodePorts {
			got = "all"
		}
		if got != tt.want || c.NodePortsMove() != tt.move {
			t.Errorf("[%s]: at %s, move %v; want %s, %v", tt.list, got, c.NodePortsMove(), tt.want, tt.move)
		}
	}
	alone := facts()
	alone.NodeIPs = alone.NodeIPs[:1]
	n, err := mustRead(t, "nodePortAddresses: [primary]\n").Network(alone)
	if err != nil || fmt.Sprint(n.NodePorts) != "[192.0.2.1 ::1]" {
		t.Errorf("primary, where the node has no address of IPv6: %v, %v", n.NodePorts, err)
	}
}

// Each field that is not honoured is told once it is set, by its name.
func TestWarnings(t *testing.T) {
	for _, tt := range []struct{ text, field string }{
		{"featureGates: {Any: true}\n", "featureGates"},
		{"logging: {verbosity: 4}\n", "logging"},
		{"logging: {options: {json: {infoBufferSize: 1k}}}\n", "logging"},
		{"configSyncPeriod: 15m\n", "configSyncPeriod"},
		{"portRange: 30000-32767\n", "portRange"},
		{"showHiddenMetricsForVersion: '1.36'\n", "showHiddenMetricsForVersion"},
		{"iptables: {syncPeriod: 30s}\n", "iptables.syncPeriod"},
		{"nftables: {syncPeriod: 30s}\n", "nftables.syncPeriod"},
		{"ipvs: {syncPeriod: 30s}\n", "ipvs.syncPeriod"},
		{"winkernel: {networkName: x}\n", "winkernel"},
		{"windowsRunAsService: true\n", "windowsRunAsService"},
	} {
		w := mustRead(t, tt.text).Warnings()
		if len(w) != 1 || !strings.HasPrefix(w[0], tt.field+" is set and has no effect here: ") {
			t.Errorf("%q: %q; want one for %s", tt.text, w, tt.field)
		}
	}
	if len(ignored) != 10 {
		t.Errorf("%d fields are not honoured; the table above has 10", len(ignored))
	}
	both := mustRead(t, "portRange: 1-2\nconfigSyncPeriod: 1m\n").Warnings()
	if len(both) != 2 || !slices.IsSorted(both) {
		t.Errorf("two warnings: %q", both)
	}
}

// FuzzLoad: whatever a file says, what is taken can be written and read again, and leads to rules or to an error.
func FuzzLoad(f *testing.F) {
	sample, err := os.ReadFile("testdata/kubeadm.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range []string{string(sample), head, head + "mode: ipvs\nnodePortAddresses: [10.0.0.0/8, primary]\nclusterCIDR: 10.244.0.0/16,fd00::/64\n",
		head + "bindAddress: \"::\"\nhealthzBindAddress: \"1.2.3.4\"\niptables: {masqueradeBit: 31}\n", head + "conntrack: {maxPerCore: -1}\ndetectLocalMode: x\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &Config{Set: map[string]bool{}}
		if c.read(data) != nil {
			return
		}
		c.Default()
		c.Warnings()
		if c.Validate() != nil {
			return
		}
		n, err := c.Network(Facts{Families: []model.Family{model.IPv4, model.IPv6}, NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
		if err != nil {
			t.Fatalf("valid, but leads to no rules: %v", err)
		}
		if n.MasqueradeMark == 0 || n.AllNodePorts && len(n.NodePorts) > 0 {
			t.Fatalf("%+v", n)
		}
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := c.Write(file); err != nil {
			t.Fatal(err)
		}
		again, err := Load(file)
		if err != nil {
			t.Fatalf("what was written is not read: %v", err)
		}
		again.Default()
		if err := again.Validate(); err != nil {
			t.Fatalf("what was written is not valid: %v", err)
		}
	})
}
