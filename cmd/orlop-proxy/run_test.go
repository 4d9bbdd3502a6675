package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/orlop/orlop/proxy/config"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/watch"
)

// partsOf are what a command line leads to.
func partsOf(t *testing.T, args ...string) *parts {
	t.Helper()
	flags := &config.Flags{}
	cmd := newCommand()
	cmd.ResetFlags()
	flags.AddTo(cmd.Flags())
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	c, err := load(flags, log)
	if err != nil {
		t.Fatal(err)
	}
	return &parts{settings: settings{flags: flags, config: c, log: log}, families: []model.Family{model.IPv4, model.IPv6}}
}

func TestConntrackSettings(t *testing.T) {
	for _, tt := range []struct {
		args string
		cpus int
		want map[string]int
	}{
		{"", 2, map[string]int{"max": 128 * 1024, "hashsize": 32 * 1024, "tcp_timeout_established": 86400, "tcp_timeout_close_wait": 3600}},
		{"--conntrack-min=1000 --conntrack-max-per-core=2000 --conntrack-tcp-timeout-established=1m --conntrack-tcp-timeout-close-wait=0", 3,
			map[string]int{"max": 6000, "hashsize": 1500, "tcp_timeout_established": 60}},
		{"--conntrack-min=9000000 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0", 64,
			map[string]int{"max": 1 << 20, "hashsize": 1 << 18}}, // as kube-proxy has it, whatever the least is to be
		{"--conntrack-max-per-core=0 --conntrack-min=5 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0", 2, map[string]int{}},
		{"--conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=5s --conntrack-udp-timeout=6s " +
			"--conntrack-udp-timeout-stream=7s --conntrack-tcp-be-liberal", 2,
			map[string]int{"tcp_timeout_close_wait": 5, "udp_timeout": 6, "udp_timeout_stream": 7, "tcp_be_liberal": 1}},
	} {
		got := map[string]int{}
		for _, s := range conntrackSettings(partsOf(t, strings.Fields(tt.args)...).config, tt.cpus) {
			name := strings.TrimPrefix(filepath.Base(s.Path), "nf_conntrack_")
			if got[name] = s.Value; s.Raise != (name == "max" || name == "hashsize") {
				t.Errorf("%s: a larger value is left alone: %v", name, s.Raise)
			}
		}
		if !maps.Equal(got, tt.want) {
			t.Errorf("%q: %v, want %v", tt.args, got, tt.want)
		}
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-1": 2, "0-3,6,8-9": 7, "": 0, "none": 0} {
		if got := countCPUs(list); got != want {
			t.Errorf("%q: %d, want %d", list, got, want)
		}
	}
	if cpus() < runtime.NumCPU() {
		t.Errorf("%d CPUs, of which %d are ours", cpus(), runtime.NumCPU())
	}
}

// The configuration's words reach the client.
func TestRestConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c"}}],
		"clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443"}}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(t.TempDir(), "config.yaml")
	text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n" +
		"clientConnection: {acceptContentTypes: text/a, contentType: text/b, qps: 2, burst: 3, kubeconfig: " + file + "}\n"
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	api, err := partsOf(t, "--config", settings).restConfig()
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(api.Host, api.AcceptContentTypes, api.ContentType, api.QPS, api.Burst, api.UserAgent)
	if want := fmt.Sprint("https://192.0.2.1:6443", "text/a", "text/b", 2, 3, "orlop-proxy/dev"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	api, err = partsOf(t, "--kubeconfig", file, "--master", "https://192.0.2.2:6443").restConfig()
	if err != nil || api.Host != "https://192.0.2.2:6443" {
		t.Errorf("--master: %v, %v", api, err)
	}
	if _, err := partsOf(t).restConfig(); err == nil || !strings.Contains(err.Error(), "set --kubeconfig (clientConnection.kubeconfig), or --services-dir") {
		t.Errorf("without any source: %v", err)
	}
	if _, err := partsOf(t, "--kubeconfig", "/nowhere").restConfig(); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("a kubeconfig that isn't there: %v", err)
	}
}

// The address that is told goes before those that the API server knows, in its family.
func TestNodeIPs(t *testing.T) {
	known := watch.Node{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}}
	for _, tt := range []struct {
		bind string
		node watch.Node
		want string
	}{
		{"0.0.0.0", known, "[192.0.2.1 2001:db8::1]"},
		{"192.0.2.7", known, "[192.0.2.7 2001:db8::1]"},
		{"2001:db8::7", known, "[2001:db8::7 192.0.2.1]"},
		{"192.0.2.7", watch.Node{}, "[192.0.2.7]"},
		{"::", watch.Node{}, "[]"},
	} {
		n, err := partsOf(t, "--bind-address", tt.bind).network(tt.node, nil)
		if got := fmt.Sprint(n.NodeIPs); err != nil || got != tt.want {
			t.Errorf("--bind-address %s: %s, %v; want %s", tt.bind, got, err, tt.want)
		}
	}
}

// --write-config-to writes what would be in force, and starts nothing.
func TestWriteConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "written.yaml")
	cmd := newCommand()
	cmd.SetArgs([]string{"--proxy-mode", "iptables", "--write-config-to", file})
	if err := cmd.ExecuteContext(context.Background()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if c := accepted(t, string(data)); c.Mode != config.IPTables {
		t.Errorf("mode %s", c.Mode)
	}
}

func TestParseService(t *testing.T) {
	for _, tt := range []struct{ text, name, port string }{
		{"web", "default/web", ""}, {"web:80", "default/web", "80"}, {"shop/web", "shop/web", ""}, {"shop/web:http", "shop/web", "http"},
	} {
		if name, port := parseService(tt.text); name.String() != tt.name || port != tt.port {
			t.Errorf("%s: %s, %q; want %s, %q", tt.text, name, port, tt.name, tt.port)
		}
	}
}
