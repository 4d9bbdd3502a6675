package proxy

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/test/kernel"
)

// others are rules that are not ours, in the tables that ours are in, too, and under names like ours. To undo them is the
// second command.
var others = [][2]string{
	{"nft add table inet others", "nft delete table inet others"},
	{"nft add chain inet others input { type filter hook input priority 5 ; }", ""},
	{"nft add rule inet others input ip saddr 10.9.9.9 drop", ""},
	{"nft add table ip kube-proxy-not", "nft delete table ip kube-proxy-not"},
	{"PROGRAM -t mangle -N KUBE-KUBELET-CANARY", "PROGRAM -t mangle -X KUBE-KUBELET-CANARY"},
	{"PROGRAM -t nat -N OTHERS", "PROGRAM -t nat -X OTHERS"},
	{"PROGRAM -t nat -A OTHERS -p tcp --dport 7 -j RETURN", "PROGRAM -t nat -F OTHERS"},
	{"PROGRAM -t nat -A PREROUTING -j OTHERS", "PROGRAM -t nat -D PREROUTING -j OTHERS"},
	{"PROGRAM -t nat -A POSTROUTING -p tcp --dport 7 -j MASQUERADE", "PROGRAM -t nat -D POSTROUTING -p tcp --dport 7 -j MASQUERADE"},
	{"PROGRAM -A INPUT -p tcp --dport 7 -j DROP", "PROGRAM -D INPUT -p tcp --dport 7 -j DROP"},
	{"PROGRAM -A FORWARD -p tcp --dport 7 -j DROP", "PROGRAM -D FORWARD -p tcp --dport 7 -j DROP"},
}

// withOthers makes rules of others until the test ends.
func withOthers(t *testing.T) {
	t.Helper()
	kernel.Require(t, kernel.Root, kernel.Command("nft"))
	for _, c := range others {
		for _, program := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
			if _, err := exec.LookPath(program); err != nil {
				continue
			}
			do(t, strings.Replace(c[0], "PROGRAM", program, 1))
			if c[1] != "" {
				t.Cleanup(func() { do(t, strings.Replace(c[1], "PROGRAM", program, 1)) })
			}
			if !strings.Contains(c[0], "PROGRAM") {
				break
			}
		}
	}
}

func do(t *testing.T, command string) {
	t.Helper()
	words := strings.Fields(command)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", command, err, out)
	}
}

var volatile = regexp.MustCompile(`^#.*|^$|\[\d+:\d+\]`)

// everythingThere is all in the network namespace that a mode may make: rules in the order of their chains, devices, virtual
// servers and sets. KUBE-FIREWALL is the kubelet's as well, and stays, see xtables.Cleanup. Of nftables' own tables there is
// but the name, since the elements of sets have no order.
func everythingThere(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, command := range []string{"nft -s list tables", "iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save",
		"nft -s list table inet others"} {
		words := strings.Fields(command)
		if _, err := exec.LookPath(words[0]); err != nil {
			continue
		}
		text, err := exec.Command(words[0], words[1:]...).Output()
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		out = append(out, tidy(command, string(text))...)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out = append(out, "link "+l.Attrs().Name)
	}
	if text, err := os.ReadFile("/proc/net/ip_vs"); err == nil {
		out = append(out, virtualServers(string(text))...)
	}
	if sets, err := netlink.IpsetListAll(); err == nil { // else the kernel has none
		for _, s := range sets {
			out = append(out, fmt.Sprintf("ipset %s: %d", s.SetName, len(s.Entries)))
		}
	}
	slices.Sort(out)
	return out
}

// virtualServers has a line for each, with its destinations in order and without what counts connections.
func virtualServers(text string) []string {
	var out, destinations []string
	end := func() {
		if slices.Sort(destinations); len(out) > 0 {
			out[len(out)-1] += strings.Join(destinations, "")
		}
		destinations = nil
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if words[0] == "->" {
			destinations = append(destinations, fmt.Sprint(" ", words[1:4]))
			continue
		}
		end()
		out = append(out, strings.Join(words, " "))
	}
	end()
	return out
}

// tidy has a line for each chain, with its rules in their order, as the order of chains has no meaning.
func tidy(command, text string) []string {
	chains := map[string]string{}
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(volatile.ReplaceAllString(strings.TrimSpace(line), ""))
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || strings.Contains(line, "KUBE-FIREWALL") || line == "COMMIT":
		case line[0] == '*':
			table = line
		case line[0] == ':':
			chains[table+" "+words[0][1:]] += "chain"
		case words[0] == "-A":
			chains[table+" "+words[1]] += "\n" + line
		default:
			chains[line] = ""
		}
	}
	var out []string
	for name, rules := range chains {
		out = append(out, command+": "+name+" "+rules)
	}
	return out
}

// variant is a mode, and which programs it finds.
type variant struct {
	mode
	legacy bool
}

func (v variant) String() string {
	if v.legacy {
		return v.name + "-legacy"
	}
	return v.name
}

func variants() []variant {
	out := []variant{{mode: modes[1], legacy: true}}
	for _, m := range modes {
		out = append(out, variant{mode: m})
	}
	return out
}

var usualPath = os.Getenv("PATH")

// run starts the program in a mode, with all kinds of objects.
func (v variant) run(t *testing.T) *program {
	t.Helper()
	kernel.Require(t, v.needs...)
	if t.Setenv("PATH", usualPath); v.legacy {
		useLegacy(t)
	}
	p := newProgram(t, v.name)
	p.write(
		service(0, nodePort(30080), affinity(100)), slice(0, "web", "pod-a", "remote-a"),
		service(0, named("lb", family(0).cluster(2)), loadBalancer(family(0).public(1)), external(family(0).public(2)), externalLocal, sources("203.0.113.0/24")), slice(0, "lb", "pod-a"),
		service(0, named("none", family(0).cluster(3)), nodePort(30081), protocol(corev1.ProtocolUDP)),
		service(1, named("six", family(1).cluster(1)), nodePort(30082)), slice(1, "six", "pod-b"),
	)
	p.start()
	return p
}

// awaits waits until what is there is as wanted.
func awaits(t *testing.T, what string, want []string) {
	t.Helper()
	for end := time.Now().Add(kernel.Patient(30 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		diff := cmp.Diff(want, everythingThere(t))
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s (-want +there):\n%.6000s", what, diff)
		}
	}
}

// quiet is what is there once it has not changed for a while.
func quiet(t *testing.T) []string {
	t.Helper()
	last, same := everythingThere(t), 0
	for end := time.Now().Add(kernel.Patient(30 * time.Second)); same < 5; time.Sleep(100 * time.Millisecond) {
		now := everythingThere(t)
		if same++; !slices.Equal(now, last) {
			last, same = now, 0
		}
		if time.Now().After(end) {
			t.Fatal("rules never come to rest")
		}
	}
	return last
}

func (p *program) cleanup(t *testing.T) {
	t.Helper()
	p.kill()
	if out, err := exec.Command(p.path, "--cleanup").CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("--cleanup: %v: %s", err, out)
	}
}

// A mode leaves nothing when another one takes its place or when it is cleaned up, and touches nothing of others.
func TestLeavesNoTrace(t *testing.T) {
	n := network(t)
	withOthers(t)
	for _, v := range variants() { // iptables of a kind makes its tables once, and they stay, empty
		t.Run("first "+v.String(), func(t *testing.T) {
			p := v.run(t)
			n.eventually(t, 0, packet{from: "client", to: "cluster-1:80", want: "pod-a|remote-a kept"})
			p.cleanup(t)
		})
	}
	before := everythingThere(t)
	with := map[string][]string{}
	for _, v := range variants() {
		t.Run(v.String(), func(t *testing.T) {
			p := v.run(t)
			n.eventually(t, 0, packet{from: "client", to: "cluster-1:80", want: "pod-a|remote-a kept"})
			with[v.String()] = quiet(t)
			if slices.Equal(before, with[v.String()]) {
				t.Error("nothing is there that was not there before")
			}
			p.cleanup(t)
			awaits(t, "after --cleanup", before)
		})
	}
	for _, from := range variants() {
		for _, to := range variants() {
			if from.String() == to.String() {
				continue
			}
			t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
				kernel.Require(t, slices.Concat(from.needs, to.needs)...)
				p := from.run(t)
				n.eventually(t, 0, packet{from: "client", to: "cluster-1:80", want: "pod-a|remote-a kept"})
				p.kill()
				p = to.run(t)
				awaits(t, "after the change", with[to.String()])
				n.eventually(t, 0, packet{from: "client", to: "cluster-1:80", want: "pod-a|remote-a kept"})
				p.cleanup(t)
				awaits(t, "after --cleanup", before)
			})
		}
	}
}
