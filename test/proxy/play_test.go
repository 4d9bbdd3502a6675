package proxy

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/iptables"
	"github.com/orlop/orlop/proxy/ipvs"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/nft"
	"github.com/orlop/orlop/proxy/xtables"
	"github.com/orlop/orlop/test/kernel"
)

// mode is a backend and what removes its rules.
type mode struct {
	name    string
	open    func(log *slog.Logger) (proxy.Backend, error)
	cleanup func() error
	needs   []kernel.Need
}

var modes = []mode{
	{"nftables", func(log *slog.Logger) (proxy.Backend, error) { return nft.New(log) }, nft.Cleanup, nil},
	{"iptables", func(log *slog.Logger) (proxy.Backend, error) { return iptables.New(log) }, xtables.Cleanup, nil},
	{"ipvs", func(log *slog.Logger) (proxy.Backend, error) { return ipvs.New(log, ipvs.Settings{Scheduler: "rr"}) }, ipvs.Cleanup, []kernel.Need{kernel.IPVS}},
}

func (m mode) start(t testing.TB) proxy.Backend {
	t.Helper()
	b, err := m.open(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := m.cleanup(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// address reads "cluster-1:80", "public-2:80" or "node:30080".
func (f family) address(text string) netip.AddrPort {
	name, number, _ := strings.Cut(text, ":")
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		panic(text)
	}
	kind, index, _ := strings.Cut(name, "-")
	n, err := strconv.Atoi(index)
	switch {
	case err == nil && kind == "cluster":
		return netip.AddrPortFrom(netip.MustParseAddr(f.cluster(n)), uint16(port))
	case err == nil && kind == "public":
		return netip.AddrPortFrom(netip.MustParseAddr(f.public(n)), uint16(port))
	}
	return netip.AddrPortFrom(hostOf(name).addrs[f], uint16(port))
}

func (p packet) transport() model.Protocol {
	if p.protocol == 0 {
		return model.TCP
	}
	return p.protocol
}

func (p packet) wantIn(mode string) string {
	switch {
	case mode == "iptables" && p.iptables != "":
		return p.iptables
	case mode == "ipvs" && p.ipvs != "":
		return p.ipvs
	}
	return p.want
}

func (p packet) String() string {
	return fmt.Sprintf("%s to %s %s", p.from, p.to, p.transport())
}

func (r reached) String() string {
	switch {
	case r.rejected:
		return "rejected"
	case r.dropped:
		return "dropped"
	case r.unreachable:
		return "unreachable"
	}
	return fmt.Sprintf("reached %s as %s", hostAt(r.server.Addr()), hostAt(r.client.Addr()))
}

// ends are the hosts that a packet may reach, with how its source looks there.
func ends(want string) map[string]string {
	out := map[string]string{}
	parts := strings.Split(want, "|")
	_, last, _ := strings.Cut(parts[len(parts)-1], " ")
	for _, part := range parts {
		host, how, ok := strings.Cut(part, " ")
		if !ok {
			how = last
		}
		out[host] = how
	}
	return out
}

// The model says what the table says.
func TestModel(t *testing.T) {
	cases := 0
	for _, s := range table {
		for _, f := range []family{0, 1} {
			network := s.net()
			state, err := stateOf(network, s.objects(f))
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			for _, p := range s.packets {
				cases++
				if problem := f.checkModel(state, network, p); problem != "" {
					t.Errorf("%s, %s: %v: %s", s.name, f.model(), p, problem)
				}
			}
		}
	}
	t.Logf("%d cases", cases)
}

func (s scenario) net() model.Network {
	n := defaultNetwork()
	if s.network != nil {
		s.network(&n)
	}
	return n
}

func (f family) source(network model.Network, from host) model.Source {
	inRange := func(p netip.Prefix) bool { return p.Contains(from.addrs[f]) }
	byInterface := network.Local.Bridge != "" || network.Local.InterfacePrefix != ""
	switch {
	case slices.ContainsFunc(network.Local.Prefixes, inRange), byInterface && strings.HasPrefix(from.addrs[0].String(), "10.244.0."):
		return model.FromPod
	case from.namespace == "node":
		return model.FromNode
	}
	return model.FromOutside
}

func (f family) checkModel(state *model.State, network model.Network, p packet) string {
	from, to := hostOf(p.from), f.address(p.to)
	toHost := hostAt(to.Addr())
	o := state.Trace(model.Packet{
		From: f.source(network, from), SourceAddr: from.addrs[f], To: to, Protocol: p.transport(),
		ToNode: slices.Contains(network.NodePorts, to.Addr()) || network.AllNodePorts && slices.Contains([]string{"node", "node-second", "bridge"}, toHost),
	})
	switch {
	case o.Port == nil: // nobody's, or what a backend refuses as it knows the address
		if p.want == "none" || p.want == "reject" || p.want == "drop" && len(network.ServiceCIDRs) > 0 {
			return ""
		}
	case o.Route.Action == model.Reject && p.want == "reject", o.Route.Action == model.Drop && p.want == "drop":
		return ""
	case o.Route.Action == model.Balance:
		return f.checkEndpoints(o, from, p.want)
	}
	return fmt.Sprintf("got %+v, want %s", o, p.want)
}

func (f family) checkEndpoints(o model.Outcome, from host, want string) string {
	wants := ends(want)
	for _, e := range o.Endpoints {
		how, ok := wants[hostAt(e.Addr.Addr())]
		masq := o.Route.Masquerade || e.OnNode && e.Addr.Addr() == from.addrs[f]
		if !ok || masq != (how == "masq") {
			return fmt.Sprintf("may end at %v, masqueraded %v; want %s", hostAt(e.Addr.Addr()), masq, want)
		}
	}
	if len(o.Endpoints) != len(wants) {
		return fmt.Sprintf("may end at %v, want %s", o.Endpoints, want)
	}
	return ""
}

// The kernel does what the table says, by the rules of each backend, and a person is told so.
func TestPackets(t *testing.T) {
	n := network(t)
	quick(t, n)
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			kernel.Require(t, m.needs...)
			backend := m.start(t)
			cases := 0
			for _, s := range table {
				if s.only != "" && s.only != m.name {
					continue
				}
				for _, f := range []family{0, 1} {
					cases += n.play(t, f, s, m, backend)
				}
			}
			t.Logf("%d cases", cases)
		})
	}
}

// quick has the kernel answer each packet that it refuses.
func quick(t *testing.T, n *topology) {
	t.Helper()
	for _, ns := range []string{"node", "outside"} {
		err := n.namespaces[ns].in(func() error {
			if err := os.WriteFile("/proc/sys/net/ipv6/icmp/ratelimit", []byte("0"), 0); err != nil {
				return err
			}
			return os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (n *topology) play(t *testing.T, f family, s scenario, m mode, backend proxy.Backend) int {
	t.Helper()
	state, err := stateOf(s.net(), s.objects(f))
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	if err := backend.Replace(t.Context(), model.Rules{Network: s.net(), Ports: slices.Collect(state.Ports())}); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	for _, d := range explained(t, state, s.net(), m.name) {
		t.Errorf("%s, %s: explained as %s", s.name, f.model(), d)
	}
	// What was tracked under other rules goes on under these.
	for _, inet := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, inet, everything{}); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for _, p := range s.packets {
		once := func() {
			tries := 3
			if want := p.wantIn(m.name); want == "drop" || want == "none" || want == "reject" {
				tries = 1 // each takes a while
			}
			for range tries {
				if problem := n.check(f, p, p.wantIn(m.name)); problem != "" {
					t.Errorf("%s, %s: %v: %s", s.name, f.model(), p, problem)
					break
				}
			}
		}
		if p.protocol == model.SCTP { // see sendSCTP
			once()
			continue
		}
		wg.Go(once)
	}
	wg.Wait()
	return len(s.packets)
}

type everything struct{}

func (everything) MatchConntrackFlow(*netlink.ConntrackFlow) bool { return true }

func (n *topology) check(f family, p packet, want string) string {
	from := hostOf(p.from)
	got, err := n.send(from, f.address(p.to), p.transport(), 0)
	switch {
	case err != nil:
		return err.Error()
	case got.rejected && want == "reject", got.dropped && (want == "drop" || want == "none"), got.unreachable && want == "none":
		return ""
	case got.rejected || got.dropped || got.unreachable:
		return fmt.Sprintf("%v, want %s", got, want)
	}
	server := hostAt(got.server.Addr())
	how, ok := ends(want)[server]
	if !ok {
		return fmt.Sprintf("ended at %s, want %s", server, want)
	}
	client := hostAt(got.client.Addr())
	byNode := slices.Contains([]string{"node", "node-second", "bridge"}, client)
	if how == "masq" && !byNode || how == "kept" && client != p.from {
		return fmt.Sprintf("%s saw %s, want %s", server, client, want)
	}
	return ""
}
