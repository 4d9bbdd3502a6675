package proxy

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/orlop/orlop/proxy/explain"
	"github.com/orlop/orlop/proxy/ipvs"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/nft"
	"github.com/orlop/orlop/proxy/xtables"
	"github.com/orlop/orlop/test/kernel"
)

// readers read back what the kernel has.
var readers = map[string]func(t *testing.T, f model.Family) (explain.Kernel, error){
	"nftables": func(_ *testing.T, f model.Family) (explain.Kernel, error) { return nft.Read(f) },
	"iptables": func(t *testing.T, f model.Family) (explain.Kernel, error) { return xtables.Read(t.Context(), f) },
	"ipvs":     func(t *testing.T, f model.Family) (explain.Kernel, error) { return ipvs.Read(t.Context(), f) },
}

// explained are the differences that a person is told of the Service "web".
func explained(t *testing.T, state *model.State, network model.Network, mode string) []string {
	t.Helper()
	kernel := map[model.Family]explain.Kernel{}
	for _, f := range network.Families {
		var err error
		if kernel[f], err = readers[mode](t, f); err != nil {
			t.Fatal(err)
		}
	}
	all := state.Explain(model.Name{Namespace: "default", Name: "web"})
	for i, x := range all {
		if mode == "ipvs" {
			all[i].Port = ipvs.Served(x.Port)
		}
	}
	var out []string
	for _, r := range explain.Of(t.Context(), all, network, kernel) {
		if r.Kernel == "" {
			t.Fatal("the kernel was not read")
		}
		out = append(out, r.Differences...)
	}
	return out
}

// Whatever somebody does to the rules of a Service, it is told what the kernel does now and what it should.
func TestExplainDifferences(t *testing.T) {
	network(t)
	for _, tt := range []struct {
		what     string
		nftables string // of nft
		iptables string // of iptables
		ipvs     string // a program and its arguments
		want     string
	}{
		{"what leads to Services is gone", "flush chain ip kube-proxy services", "-t nat -F KUBE-SERVICES", "ip addr flush dev kube-ipvs0",
			"10.96.0.1:80 from pod: the model says [10.244.0.2:8080 10.244.1.2:8080], the kernel has "},
		{"an endpoint is gone", "delete element ip kube-proxy cluster-endpoints { 10.96.0.1 . tcp . 80 . 0 }", "-t nat -F CHAIN-OF-ENDPOINT",
			"ipvsadm -e -t 10.96.0.1:80 -r 10.244.0.2:8080 -m -w 0", "10.96.0.1:80"},
		{"what is to be masqueraded is not", "flush chain ip kube-proxy masquerading", "-t nat -F KUBE-MARK-MASQ", "iptables -t nat -F KUBE-MARK-MASQ",
			"10.96.0.1:80 from node: the model says [10.244.0.2:8080 10.244.1.2:8080] masqueraded, the kernel has [10.244.0.2:8080 10.244.1.2:8080]"},
		{"everybody may come", "flush map ip kube-proxy firewall-ips", "-t nat -I CHAIN-OF-SOURCES -j CHAIN-OF-EXTERNAL", "ipset flush KUBE-LOAD-BALANCER-FW",
			"198.51.100.1:80 from a source that may not come: the model says drop, the kernel has [10.244.0.2:8080 10.244.1.2:8080] masqueraded"},
		{"what nobody of us wrote", "insert rule ip kube-proxy services ip ttl 3 drop", "-t nat -I KUBE-SERVICES -m ttl --ttl-eq 3 -j ACCEPT",
			"ipvsadm -e -t 10.96.0.1:80 -r 10.244.0.2:8080 -m -w 7", "10.96.0.1:80: "},
	} {
		changes := map[string]string{"nftables": "nft " + tt.nftables, "iptables": "iptables " + tt.iptables, "ipvs": tt.ipvs}
		for name, change := range changes {
			t.Run(name+"/"+tt.what, func(t *testing.T) {
				kernel.Require(t, kernel.Command("nft"), kernel.Command("iptables"))
				at := slices.IndexFunc(modes, func(m mode) bool { return m.name == name })
				kernel.Require(t, modes[at].needs...)
				backend := modes[at].start(t)
				state := webWithSources(t)
				if err := backend.Replace(t.Context(), model.Rules{Network: defaultNetwork(), Ports: slices.Collect(state.Ports())}); err != nil {
					t.Fatal(err)
				}
				if got := explained(t, state, defaultNetwork(), name); len(got) > 0 {
					t.Fatalf("before: %q", got)
				}
				if name == "iptables" {
					change = chainsOfWeb(t).Replace(change)
				}
				words := strings.Fields(change)
				command(t, words[0], words[1:]...)
				got := explained(t, state, defaultNetwork(), name)
				if !slices.ContainsFunc(got, func(d string) bool { return strings.HasPrefix(d, tt.want) }) {
					t.Errorf("told\n%s\nwant\n%s", strings.Join(got, "\n"), tt.want)
				}
			})
		}
	}
}

func webWithSources(t *testing.T) *model.State {
	t.Helper()
	state, err := stateOf(defaultNetwork(), []runtime.Object{
		service(0, loadBalancer(family(0).public(1)), sources("203.0.113.0/24"), nodePort(30080)), slice(0, "web", "pod-a", "remote-a"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// chainsOfWeb finds how chains are called that have hashes in their names.
func chainsOfWeb(t *testing.T) *strings.Replacer {
	t.Helper()
	out, err := exec.Command("iptables", "-t", "nat", "-S").Output()
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for name, prefix := range map[string]string{"CHAIN-OF-ENDPOINT": "-N KUBE-SEP-", "CHAIN-OF-SOURCES": "-N KUBE-FW-", "CHAIN-OF-EXTERNAL": "-N KUBE-EXT-"} {
		_, rest, found := strings.Cut(string(out), prefix)
		if !found {
			t.Fatalf("no %s in\n%s", prefix, out)
		}
		hash, _, _ := strings.Cut(rest, "\n")
		pairs = append(pairs, name, strings.TrimPrefix(prefix, "-N ")+hash)
	}
	return strings.NewReplacer(pairs...)
}

// A person learns where packets go, and when the kernel has other rules than it should.
func TestExplain(t *testing.T) {
	n := network(t)
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			kernel.Require(t, m.needs...)
			explainIn(t, n, m.name)
		})
	}
}

func explainIn(t *testing.T, n *topology, mode string) {
	p := newProgram(t, mode)
	p.write(service(0, nodePort(30080), externalLocal), slice(0, "web", "pod-a", "remote-a", "pod-b notready"))
	p.start()
	n.eventually(t, 0, packet{from: "outside", to: "node:30080", want: "pod-a kept"})
	explain := func(args ...string) string {
		t.Helper()
		for {
			out, err := exec.Command(p.path, append([]string{"explain"}, args...)...).CombinedOutput()
			if strings.Contains(string(out), "the first rules are being set") {
				continue // those of IPv6 come after those that we met
			}
			if err != nil {
				t.Fatalf("explain %v: %v: %s", args, err, out)
			}
			return string(out)
		}
	}
	text := explain("web")
	fromOutside := "from outside    10.244.0.2:8080 (policy Local)"
	if mode == "ipvs" { // pods are sent there as well
		fromOutside = "from pods       10.244.0.2:8080 (policy Local)"
	}
	for _, want := range []string{
		"default/web:http, TCP over IPv4", "ClusterIP 10.96.0.1:80", "from pods       one of 10.244.0.2:8080, 10.244.1.2:8080 (policy Cluster)",
		fromOutside, "not used: it is not ready", "The kernel's rules say the same.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if out := explain("default/web:80", "-o", "json"); !strings.Contains(out, `"service": "default/web"`) {
		t.Errorf("json: %s", out)
	}
	out, err := exec.Command(p.path, "explain", "nobody").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "service default/nobody") {
		t.Errorf("a Service that isn't there: %v, %s", err, out)
	}
	t.Logf("\n%s", text)
}
