package iptables

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/test/kernel"
)

// The tests change rules, in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || kernel.InOwnNetwork() {
		os.Exit(kernel.Main(m))
	}
	code, err := kernel.OwnNetwork()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func newBackend(t testing.TB) *Backend {
	t.Helper()
	kernel.Require(t, kernel.Root, kernel.Command("iptables-restore"), kernel.Command("ip6tables-restore"))
	b, err := New(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := Cleanup(); err != nil {
			t.Error(err)
		}
		for family, lines := range saved(t) {
			for _, line := range lines {
				if strings.Contains(line, "KUBE-") {
					t.Errorf("%s: left after Cleanup: %s", family, line)
				}
			}
		}
	})
	return b
}

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// saved is what the kernel holds: chains and rules of all tables. The order of chains has no meaning, that of rules in a
// chain has.
func saved(t testing.TB) map[model.Family][]string {
	t.Helper()
	out := map[model.Family][]string{}
	for family, program := range families {
		text, err := run(context.Background(), program.program+"-save")
		if err != nil {
			t.Fatal(err)
		}
		lines := map[string][]string{}
		var table string
		for _, line := range text {
			line = counters.ReplaceAllString(strings.TrimSpace(line), "")
			switch {
			case strings.HasPrefix(line, "*"):
				table = line
			case strings.HasPrefix(line, ":"):
				lines[table+line] = append(lines[table+line], "")
			case strings.HasPrefix(line, "-A "):
				chain := table + ":" + strings.Fields(line)[1]
				lines[chain] = append(lines[chain], line)
			}
		}
		for name, rules := range lines {
			out[family] = append(out[family], fmt.Sprintf("%s %q", name, rules))
		}
		slices.Sort(out[family])
	}
	return out
}

// After any changes the rules are those that a fresh start makes.
func TestRandomChanges(t *testing.T) {
	for seed := range uint64(2) {
		b := newBackend(t)
		c := modeltest.New(seed, modeltest.Network())
		c.Net.AllNodePorts = seed == 1
		if err := b.Replace(t.Context(), c.Rules()); err != nil {
			t.Fatal(err)
		}
		for i := range 300 {
			c.Change(20)
			if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
				t.Fatalf("change %d: %v", i, err)
			}
		}
		before := saved(t)
		if err := newBackend(t).Replace(t.Context(), c.Rules()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(saved(t), before); diff != "" {
			t.Errorf("seed %d (-fresh +changed):\n%s", seed, diff)
		}
	}
}

// What an earlier process and a kube-proxy left goes with the first rules, and the kubelet's stays.
func TestReplaceDropsOthers(t *testing.T) {
	b := newBackend(t)
	for _, chain := range []string{"KUBE-SVC-OLD", "KUBE-SEP-OLD", "KUBE-FIREWALL"} {
		if _, err := run(t.Context(), "iptables", "-t", "nat", "-N", chain); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := run(t.Context(), "iptables", "-t", "nat", "-A", "KUBE-SVC-OLD", "-j", "KUBE-SEP-OLD"); err != nil {
		t.Fatal(err)
	}
	if err := b.Replace(t.Context(), modeltest.New(1, modeltest.Network()).Rules()); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(saved(t)[model.IPv4], "\n")
	if strings.Contains(all, "OLD") || !strings.Contains(all, "KUBE-FIREWALL") {
		t.Errorf("left:\n%s", all)
	}
	if _, err := run(t.Context(), "iptables", "-t", "nat", "-X", "KUBE-FIREWALL"); err != nil {
		t.Fatal(err)
	}
}

func many(n, second int) []*model.Port {
	balance := model.Route{Set: model.Cluster}
	masq := model.Route{Set: model.Cluster, Masquerade: true}
	var out []*model.Port
	for i := range n {
		addr := func(a int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(a), byte(i >> 8), byte(i)}) }
		out = append(out, &model.Port{
			Key:       model.PortKey{Service: model.Name{Namespace: "ns", Name: fmt.Sprintf("service-%d", i)}, Protocol: model.TCP, Family: model.IPv4},
			Frontends: []model.Frontend{{Kind: model.ClusterIP, Addr: addr(96), Port: 80, Routes: model.Routes{balance, masq, masq}}},
			Cluster:   []model.Endpoint{{Addr: netip.AddrPortFrom(addr(128), 8080)}, {Addr: netip.AddrPortFrom(addr(second), 8080)}},
		})
	}
	return out
}

func BenchmarkBackend(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		backend := newBackend(b)
		ports := many(n, 129)
		rules := model.Rules{Network: modeltest.Network(), Ports: ports}
		b.Run(fmt.Sprintf("replace/%d", n), func(b *testing.B) {
			for b.Loop() {
				if err := backend.Replace(b.Context(), rules); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("endpoint/%d", n), func(b *testing.B) {
			at := [][]*model.Port{ports, many(n, 130)}
			i := 0
			for b.Loop() {
				i++
				change := model.Change{Old: at[(i+1)%2][7], New: at[i%2][7]}
				if err := backend.Apply(b.Context(), []model.Change{change}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("service/%d", n), func(b *testing.B) {
			there := true
			for b.Loop() {
				change := model.Change{Old: ports[7]}
				if !there {
					change = model.Change{New: ports[7]}
				}
				there = !there
				if err := backend.Apply(b.Context(), []model.Change{change}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
