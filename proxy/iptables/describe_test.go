package iptables

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/proxy/trace"
	"github.com/orlop/orlop/proxy/xtables"
)

// played is a backend that tells a ruleset what it would tell iptables-restore.
type played struct {
	tables map[model.Family]*tables
	rules  map[model.Family]ruleset
}

// chainsAtOnceHere has both ways of a replacement tried.
var chainsAtOnceHere = map[model.Family]int{model.IPv4: 7, model.IPv6: 1 << 30}

func play(t *testing.T, rules model.Rules) *played {
	t.Helper()
	if err := xtables.CheckNetwork(&rules.Network); err != nil {
		t.Fatal(err)
	}
	out := &played{tables: map[model.Family]*tables{}, rules: map[model.Family]ruleset{}}
	for _, family := range rules.Network.Families {
		tables, c, err := fresh(families[family], &rules)
		if err != nil {
			t.Fatal(err)
		}
		out.tables[family], out.rules[family] = tables, newRuleset()
		for _, sections := range replacement(tables, c, &xtables.Existing{}, chainsAtOnceHere[family]) {
			var text bytes.Buffer
			for _, s := range sections {
				s.Write(&text)
			}
			if err := out.rules[family].restore(text.String()); err != nil {
				t.Fatalf("%v in\n%s", err, text.String())
			}
		}
	}
	return out
}

func (p *played) apply(t *testing.T, changes []model.Change) {
	t.Helper()
	for _, change := range changes {
		c, family := newChange(), change.Key().Family
		if err := p.tables[family].put(c, change.Key(), change.New); err != nil {
			t.Fatal(err)
		}
		text := string(p.tables[family].apply(c))
		if text == "" {
			continue
		}
		if err := p.rules[family].restore(text); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
}

// agree sends each packet through the rules and through the model.
func (p *played) agree(t *testing.T, c *modeltest.Cluster) {
	t.Helper()
	for i, family := range c.Net.Families {
		agree(t, c, i, p.rules[family].tracer())
	}
}

// agree is of the rules of a family: 0 for IPv4.
func agree(t *testing.T, c *modeltest.Cluster, family int, rules *xtables.Rules) {
	t.Helper()
	local := func(a netip.Addr) bool {
		return a == modeltest.NodeSource[family] || a == modeltest.SecondAddress[family] || a.IsLoopback()
	}
	for _, to := range c.Targets(family) {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			for source, in := range []string{"cni0", "", "eth0"} {
				addr := [][2]netip.Addr{modeltest.PodSource, modeltest.NodeSource, modeltest.OutsideSource}[source][family]
				got, err := rules.Trace(t.Context(), trace.Packet{From: netip.AddrPortFrom(addr, 40000), To: to, Protocol: protocol, In: in, Local: local})
				if err != nil {
					t.Fatalf("%s to %s: %v", addr, to, err)
				}
				want, said := expected(c, model.Packet{From: model.Source(source), SourceAddr: addr, To: to, Protocol: protocol,
					ToNode: c.Net.AllNodePorts && local(to.Addr()) || slices.Contains(c.Net.NodePorts, to.Addr())})
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("%s to %s %s: the rules say %+v, the model %+v: %+v", addr, to, protocol, got, want, said)
				}
			}
		}
	}
}

func expected(c *modeltest.Cluster, p model.Packet) (trace.Ending, model.Outcome) {
	o := c.State.Trace(p)
	var out trace.Ending
	switch {
	case o.Port == nil: // nobody's: this backend has no rules for addresses without a Service
	case o.Route.Action == model.Reject:
		out.Rejected = true
	case o.Route.Action == model.Drop:
		out.Dropped = true
	default:
		out.Masquerade = o.Route.Masquerade
		for _, e := range o.Endpoints {
			out.Endpoints = append(out.Endpoints, e.Addr)
		}
	}
	return out, o
}

// networks are all ways to tell pods and node ports.
func networks() map[string]model.Network {
	out := map[string]model.Network{}
	add := func(name string, change func(n *model.Network)) {
		n := modeltest.Network()
		change(&n)
		out[name] = n
	}
	add("plain", func(*model.Network) {})
	add("all addresses", func(n *model.Network) { n.AllNodePorts = true })
	add("localhost", func(n *model.Network) { n.AllNodePorts, n.LocalhostNodePorts = true, true })
	add("liberal", func(n *model.Network) { n.TCPBeLiberal = true })
	add("masquerade all", func(n *model.Network) { n.MasqueradeAll = true })
	add("two ranges", func(n *model.Network) {
		n.Local.Prefixes = []netip.Prefix{netip.MustParsePrefix("10.240.0.0/16"), netip.MustParsePrefix("10.244.0.0/16"),
			netip.MustParsePrefix("fd00:244::/64"), netip.MustParsePrefix("fd00:240::/64")}
	})
	add("bridge", func(n *model.Network) { n.Local = model.LocalDetection{Bridge: "cni0"} })
	add("interfaces", func(n *model.Network) { n.Local = model.LocalDetection{InterfacePrefix: "cni"} })
	return out
}

// What the rules do is what the model says, after any changes and with any network; and changes leave the rules that a
// fresh start makes.
func TestAgree(t *testing.T) {
	seed := uint64(0)
	for name, network := range networks() {
		seed++
		t.Run(name, func(t *testing.T) {
			c := modeltest.New(seed, network)
			for range 60 {
				c.Change(20)
			}
			c.State.Commit()
			p := play(t, c.Rules())
			p.agree(t, c)
			for range 3 {
				for range 150 {
					c.Change(20)
					p.apply(t, c.State.Commit())
				}
				p.agree(t, c)
			}
			again := play(t, c.Rules())
			for family := range p.rules {
				if was, now := fmt.Sprint(p.rules[family]), fmt.Sprint(again.rules[family]); was != now {
					t.Errorf("%s: after changes\n%s\nafresh\n%s", family, was, now)
				}
			}
		})
	}
}

func onePort(change func(*model.Port)) *model.Port {
	balance := model.Routes{{}, {}, {}}
	p := &model.Port{
		Key:       model.PortKey{Service: model.Name{Namespace: "ns", Name: "web"}, Port: "http", Protocol: model.TCP, Family: model.IPv4},
		Frontends: []model.Frontend{{Kind: model.ClusterIP, Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Routes: balance}},
		Cluster: []model.Endpoint{{Addr: netip.MustParseAddrPort("10.244.0.5:8080"), OnNode: true},
			{Addr: netip.MustParseAddrPort("10.244.7.5:8080")}},
	}
	change(p)
	return p
}

var toWeb = trace.Packet{From: netip.AddrPortFrom(modeltest.PodSource[0], 40000), To: netip.MustParseAddrPort("10.96.0.10:80"), Protocol: model.TCP,
	In: "cni0", Local: func(netip.Addr) bool { return false }}

// An endpoint that reaches itself sees an address of the node; one that reaches another does not.
func TestHairpin(t *testing.T) {
	p := play(t, model.Rules{Network: modeltest.Network(), Ports: []*model.Port{onePort(func(p *model.Port) { p.Cluster = p.Cluster[:1] })}})
	got, err := p.rules[model.IPv4].tracer().Trace(t.Context(), toWeb)
	if err != nil || !got.Masquerade || fmt.Sprint(got.Endpoints) != "[10.244.0.5:8080]" {
		t.Errorf("an endpoint to itself: %+v, %v", got, err)
	}
	other := toWeb
	other.From = netip.MustParseAddrPort("10.244.0.6:40000")
	if got, err := p.rules[model.IPv4].tracer().Trace(t.Context(), other); err != nil || got.Masquerade {
		t.Errorf("another pod: %+v, %v", got, err)
	}
}

// A client that is known goes where it went before.
func TestAffinity(t *testing.T) {
	port := onePort(func(p *model.Port) { p.Affinity = 90*time.Minute + time.Millisecond })
	p := play(t, model.Rules{Network: modeltest.Network(), Ports: []*model.Port{port}})
	for _, e := range port.Cluster {
		known := map[string]bool{endpointChain(port.Key, e.Addr): true}
		rules := p.rules[model.IPv4].tracer()
		rules.Known = known
		got, err := rules.Trace(t.Context(), toWeb)
		if err != nil || fmt.Sprint(got.Endpoints) != fmt.Sprint([]netip.AddrPort{e.Addr}) {
			t.Errorf("a client of %s: %+v, %v", e.Addr, got, err)
		}
	}
	rules := p.rules[model.IPv4][xtables.NAT]
	if all := fmt.Sprint(rules[setChain(model.Cluster, port.Key)]); strings.Count(all, "--seconds 5401 --reap") != 2 {
		t.Errorf("no rule forgets clients after the time: %s", all)
	}
	if all := fmt.Sprint(rules[endpointChain(port.Key, port.Cluster[0].Addr)]); !strings.Contains(all, "--set --name") {
		t.Errorf("no rule remembers a client: %s", all)
	}
}

// NodePorts on the loopback address are served only where the kernel routes it, and then closed to others on the link.
func TestLoopback(t *testing.T) {
	masquerade := model.Route{Masquerade: true}
	port := onePort(func(p *model.Port) {
		p.Frontends = []model.Frontend{{Kind: model.NodePort, Port: 30080, Routes: model.Routes{masquerade, masquerade, masquerade}}}
	})
	local := func(a netip.Addr) bool { return a.IsLoopback() }
	node := trace.Packet{From: netip.MustParseAddrPort("127.0.0.1:40000"), To: netip.MustParseAddrPort("127.0.0.1:30080"), Protocol: model.TCP, Local: local}
	stranger := trace.Packet{From: netip.AddrPortFrom(modeltest.OutsideSource[0], 40000), To: netip.MustParseAddrPort("127.0.0.1:10249"),
		Protocol: model.TCP, In: "eth0", Local: local}
	for _, served := range []bool{false, true} {
		network := modeltest.Network()
		network.AllNodePorts, network.LocalhostNodePorts = true, served
		p := play(t, model.Rules{Network: network, Ports: []*model.Port{port}})
		if got, err := p.rules[model.IPv4].tracer().Trace(t.Context(), node); err != nil || (len(got.Endpoints) == 2) != served {
			t.Errorf("served %t: %+v, %v", served, got, err)
		}
		if got, err := p.rules[model.IPv4].tracer().Trace(t.Context(), stranger); err != nil || got.Dropped != served {
			t.Errorf("served %t: from outside: %+v, %v", served, got, err)
		}
	}
}

// A state that rules can't say is an error, not something like it.
func TestDescribeErrors(t *testing.T) {
	reject, drop := model.Route{Action: model.Reject}, model.Route{Action: model.Drop}
	external := func(n byte, routes model.Routes) model.Frontend {
		return model.Frontend{Kind: model.ExternalIP, Addr: netip.AddrFrom4([4]byte{198, 51, 100, n}), Port: 80, Routes: routes}
	}
	for name, tt := range map[string]struct {
		change func(*model.Port)
		want   string
	}{
		"rejected and dropped": {func(p *model.Port) { p.Frontends = append(p.Frontends, external(1, model.Routes{{}, reject, drop})) }, "can't tell apart"},
		"routes differ": {func(p *model.Port) {
			p.Frontends = append(p.Frontends, external(1, model.Routes{}), external(2, model.Routes{reject, reject, reject}))
		}, "chain in common"},
		"an empty list":       {func(p *model.Port) { p.Cluster = nil }, "list Cluster, which is empty"},
		"node like no other":  {func(p *model.Port) { p.Frontends[0].Routes = model.Routes{{}, {Masquerade: true}, {}} }, "does not know"},
		"pods masqueraded":    {func(p *model.Port) { p.Frontends[0].Routes = model.Routes{{Masquerade: true}, {}, {}} }, "does not know"},
		"pods go elsewhere":   {func(p *model.Port) { p.Frontends[0].Routes = model.Routes{drop, {}, {}} }, "does not know"},
		"sources of the node": {func(p *model.Port) { p.Frontends[0].Sources = modeltest.Network().ServiceCIDRs[:1] }, "only load balancers"},
	} {
		network := modeltest.Network()
		if _, err := describe(families[model.IPv4], &network, onePort(tt.change)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestCheckNetwork(t *testing.T) {
	for want, change := range map[string]func(*model.Network){
		"0x3":                func(n *model.Network) { n.MasqueradeMark = 3 },
		`"cni0 -j ACCEPT"`:   func(n *model.Network) { n.Local.Bridge = "cni0 -j ACCEPT" },
		`"fifteen-letters+"`: func(n *model.Network) { n.Local.InterfacePrefix = "fifteen-letters" },
		"IPv5":               func(n *model.Network) { n.Families = append(n.Families, 5) },
	} {
		n := modeltest.Network()
		change(&n)
		if err := xtables.CheckNetwork(&n); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// The names are those that other programs know: these are from a node with kube-proxy.
func TestNames(t *testing.T) {
	dns := model.PortKey{Service: model.Name{Namespace: "kube-system", Name: "kube-dns"}, Port: "dns", Protocol: model.UDP, Family: model.IPv4}
	api := model.PortKey{Service: model.Name{Namespace: "default", Name: "kubernetes"}, Port: "https", Protocol: model.TCP, Family: model.IPv4}
	for _, tt := range []struct{ got, want string }{
		{setChain(model.Cluster, dns), "KUBE-SVC-TCOU7JCQXEZGVUNU"},
		{setChain(model.Cluster, api), "KUBE-SVC-NPX46M4PTMTKRN6Y"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s, want %s", tt.got, tt.want)
		}
	}
}

// Whatever an object is called, its rules have one line each, and no more words than they should.
func FuzzComment(f *testing.F) {
	f.Add("ns/web:http")
	f.Add("a\"\nCOMMIT\n*nat\n-F\\")
	f.Add(strings.Repeat("x", 300))
	f.Fuzz(func(t *testing.T, text string) {
		got := comment(text)
		if words := xtables.SplitRule(got); len(words) != 4 && strings.TrimSpace(text) != "" {
			t.Errorf("%q has the words %q", got, words)
		}
		if strings.ContainsAny(got, "\n\r\\") || strings.Count(got, `"`) != 2 {
			t.Errorf("%q ends its quotes", got)
		}
	})
}
