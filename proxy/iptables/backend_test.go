package iptables

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/proxy/xtables"
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

// kinds are those of iptables: the one makes rules of nftables, the other tables of its own.
var kinds = []string{"nft", "legacy"}

// use has programs of a kind found as "iptables".
func use(t testing.TB, kind string) {
	t.Helper()
	kernel.Require(t, kernel.Root, kernel.Command("iptables-"+kind), kernel.Command("ip6tables-"+kind))
	dir := t.TempDir()
	for _, f := range families {
		for _, what := range []string{"", "-restore", "-save"} {
			path, err := exec.LookPath(f.program + "-" + kind + what)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(path, filepath.Join(dir, f.program+what)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func newBackend(t testing.TB) *Backend {
	t.Helper()
	kernel.Require(t, kernel.Root, kernel.Command("iptables-restore"), kernel.Command("ip6tables-restore"))
	b, err := open(slog.New(slog.DiscardHandler), 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := xtables.Cleanup(); err != nil {
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
	out, err := savedHere()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func savedHere() (map[model.Family][]string, error) {
	out := map[model.Family][]string{}
	for family, program := range families {
		text, err := exec.Command(program.program + "-save").Output()
		if err != nil {
			return nil, fmt.Errorf("%s-save: %w", program.program, err)
		}
		lines := map[string][]string{}
		var table string
		for _, line := range strings.Split(string(text), "\n") {
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
	return out, nil
}

func do(command ...string) error {
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}

func forEachKind(t *testing.T, test func(t *testing.T)) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			use(t, kind)
			test(t)
		})
	}
}

// After any changes the rules are those that a fresh start makes, and nobody takes our own changes for those of others.
func TestRandomChanges(t *testing.T) {
	forEachKind(t, func(t *testing.T) {
		for seed := range uint64(2) {
			b := newBackend(t)
			c := modeltest.New(seed, modeltest.Network())
			c.Net.AllNodePorts = seed == 1
			if err := b.Replace(t.Context(), c.Rules()); err != nil {
				t.Fatal(err)
			}
			for i := range 200 {
				for range 5 {
					c.Change(20)
				}
				if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
					t.Fatalf("change %d: %v", i, err)
				}
			}
			select {
			case <-b.Tampered():
				t.Error("its own changes were taken for another's")
			default:
			}
			before := saved(t)
			// Also with what was there before, which must not matter.
			for _, how := range []string{"over the old", "afresh"} {
				if how == "afresh" {
					if err := xtables.Cleanup(); err != nil {
						t.Fatal(err)
					}
				}
				if err := newBackend(t).Replace(t.Context(), c.Rules()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(saved(t), before); diff != "" {
					t.Errorf("seed %d (-%s +changed):\n%s", seed, how, diff)
				}
			}
		}
	})
}

// What the kernel holds does what the model says, in the forms in which each kind of iptables lists it: with any network, and
// with rules of others beside ours.
func TestKernelAgrees(t *testing.T) {
	forEachKind(t, func(t *testing.T) {
		b := newBackend(t)
		for _, others := range []string{"iptables -A FORWARD -m hashlimit --hashlimit-name x --hashlimit-above 9/sec -j DROP", "ip6tables -t nat -I PREROUTING -p tcp -j LOG"} {
			rule := strings.Fields(others)
			if err := do(rule...); err != nil {
				t.Fatal(err)
			}
			rule[slices.IndexFunc(rule, func(w string) bool { return w == "-A" || w == "-I" })] = "-D"
			t.Cleanup(func() {
				if err := do(rule...); err != nil {
					t.Error(err)
				}
			})
		}
		t.Cleanup(func() { // what is the kubelet's, too, stays otherwise
			for _, command := range []string{"-D INPUT -j KUBE-FIREWALL", "-D OUTPUT -j KUBE-FIREWALL", "-F KUBE-FIREWALL", "-X KUBE-FIREWALL"} {
				if err := do(append([]string{"iptables"}, strings.Fields(command)...)...); err != nil {
					t.Error(err)
				}
			}
		})
		for name, network := range networks() {
			c := modeltest.New(7, network)
			for range 60 {
				c.Change(8)
			}
			c.State.Commit()
			if err := b.Replace(t.Context(), c.Rules()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for i, family := range network.Families {
				rules, err := xtables.Read(t.Context(), family)
				if err != nil {
					t.Fatal(err)
				}
				agree(t, c, i, rules)
			}
		}
	})
}

// What somebody else does to our rules is told; what others do to theirs, in the same tables, is not.
func TestTampered(t *testing.T) {
	forEachKind(t, func(t *testing.T) {
		b := newBackend(t)
		c := modeltest.New(1, modeltest.Network())
		for range 100 {
			c.Change(20)
		}
		c.State.Commit()
		replace := func() {
			t.Helper()
			if err := b.Replace(t.Context(), c.Rules()); err != nil {
				t.Fatal(err)
			}
			<-time.After(200 * time.Millisecond) // until legacy tables were looked at
		}
		replace()
		before := saved(t)
		for _, others := range []string{
			"iptables -t nat -I POSTROUTING -s 10.9.0.0/16 -j ACCEPT", "iptables -t nat -D POSTROUTING -s 10.9.0.0/16 -j ACCEPT",
			"ip6tables -N OTHERS", "ip6tables -I INPUT -j OTHERS", "ip6tables -A OTHERS -j ACCEPT",
			"ip6tables -D INPUT -j OTHERS", "ip6tables -F OTHERS", "ip6tables -X OTHERS",
		} {
			if err := do(strings.Fields(others)...); err != nil {
				t.Fatal(err)
			}
			select {
			case <-b.Tampered():
				t.Fatalf("%s was told", others)
			case <-time.After(200 * time.Millisecond): // some polls
			}
		}
		for _, tamper := range []string{
			"iptables -t nat -F", "ip6tables -t filter -F", "iptables -t nat -F OUTPUT", "iptables -t filter -F KUBE-FORWARD",
			"iptables -t nat -D KUBE-POSTROUTING 1", "ip6tables -t filter -A KUBE-SERVICES -j ACCEPT", "ip6tables -t nat -F KUBE-NODEPORTS",
			"iptables -t nat -R KUBE-MARK-MASQ 1 -j MARK --or-mark 0x8000", // as large as before
		} {
			if err := do(strings.Fields(tamper)...); err != nil {
				t.Fatal(err)
			}
			select {
			case <-b.Tampered():
			case <-time.After(5 * time.Second):
				t.Fatalf("%s went unnoticed", tamper)
			}
			replace()
			if diff := cmp.Diff(saved(t), before); diff != "" {
				t.Errorf("after %s (-restored +before):\n%s", tamper, diff)
			}
			for len(b.Tampered()) > 0 { // told twice, as rules go one by one
				<-b.Tampered()
			}
		}
	})
}

// What an earlier process and a kube-proxy left goes with the first rules, and the kubelet's stays.
func TestReplaceDropsOthers(t *testing.T) { forEachKind(t, replaceDropsOthers) }

func replaceDropsOthers(t *testing.T) {
	b := newBackend(t)
	for _, command := range []string{
		"iptables -t nat -N KUBE-SVC-OLD", "iptables -t nat -N KUBE-SEP-OLD", "iptables -t nat -A KUBE-SVC-OLD -j KUBE-SEP-OLD",
		"iptables -t nat -N KUBE-FIREWALL",
		// As in mode ipvs:
		"iptables -t mangle -N KUBE-PROXY-FIREWALL", "iptables -t mangle -A PREROUTING -j KUBE-PROXY-FIREWALL",
		"iptables -N KUBE-IPVS-FILTER", "iptables -A INPUT -j KUBE-IPVS-FILTER",
	} {
		if err := do(strings.Fields(command)...); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Replace(t.Context(), modeltest.New(1, modeltest.Network()).Rules()); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(saved(t)[model.IPv4], "\n")
	if strings.Contains(all, "OLD") || strings.Contains(all, "IPVS") || strings.Contains(all, "PREROUTING -j KUBE-PROXY") || !strings.Contains(all, "KUBE-FIREWALL") {
		t.Errorf("left:\n%s", all)
	}
	if err := do("iptables", "-t", "nat", "-X", "KUBE-FIREWALL"); err != nil {
		t.Fatal(err)
	}
}
