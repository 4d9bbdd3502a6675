package ipvs

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/test/kernel"
)

// The tests change what the kernel holds, in a network namespace of their own.
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

func newBackend(t *testing.T, s Settings) *Backend {
	t.Helper()
	kernel.Require(t, kernel.Root, kernel.IPVS, kernel.Command("iptables-restore"), kernel.Command("ip6tables-restore"))
	if s.Scheduler == "" {
		s.Scheduler = "rr"
	}
	if err := kernel.LoopbackUp(); err != nil { // without a route, no destination is an address for the kernel
		t.Fatal(err)
	}
	b, err := New(slog.New(slog.NewTextHandler(t.Output(), nil)), s)
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
		for _, line := range there(t) {
			if strings.Contains(line, "KUBE-") || !strings.HasPrefix(line, "iptables") && !strings.HasPrefix(line, "ip6tables") {
				t.Errorf("left after Cleanup: %s", line)
			}
		}
	})
	return b
}

// there is all that the kernel holds, but for destinations that are about to leave.
func there(t *testing.T) []string {
	t.Helper()
	out, err := thereNow()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// thereNow is of the network namespace of the calling thread.
func thereNow() ([]string, error) {
	var out []string
	for _, list := range []func() ([]string, error){serversNow, addrsNow, setsNow, rulesNow} {
		lines, err := list()
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	slices.Sort(out)
	return out, nil
}

func serversNow() (out []string, err error) {
	handle, err := ipvs.New("")
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	servers, err := handle.GetServices()
	if err != nil {
		return nil, err
	}
	for _, s := range servers {
		out = append(out, fmt.Sprintf("server %v %s flags %d timeout %d", serverOf(s), s.SchedName, s.Flags&persistent, s.Timeout))
		destinations, err := handle.GetDestinations(s)
		if err != nil {
			return nil, err
		}
		for _, d := range destinations {
			if d.Weight > 0 {
				out = append(out, fmt.Sprintf("server %v to %s", serverOf(s), endpointOf(d)))
			}
		}
	}
	return out, nil
}

func addrsNow() (out []string, err error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return nil, nil //nolint:nilerr // there is none
	}
	addrs, err := netlink.AddrList(link, unix.AF_UNSPEC)
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			out = append(out, fmt.Sprintf("address %s", a.IPNet))
		}
	}
	return out, err
}

func setsNow() (out []string, err error) {
	sets, err := netlink.IpsetListAll()
	for _, s := range sets {
		for _, e := range s.Entries {
			port, protocol := uint16(0), uint8(0)
			if e.Port != nil {
				port = *e.Port
			}
			if e.Protocol != nil {
				protocol = *e.Protocol
			}
			out = append(out, fmt.Sprintf("set %s: %s %d %d %s/%d", s.SetName, e.IP, protocol, port, e.IP2, e.CIDR2))
		}
		if s.TypeName != "" { // the first message of a set
			out = append(out, fmt.Sprintf("set %s is %s", s.SetName, s.TypeName))
		}
	}
	return out, err
}

func rulesNow() (out []string, err error) {
	for _, program := range []string{"iptables", "ip6tables"} {
		text, err := exec.Command(program + "-save").Output()
		if err != nil {
			return nil, err
		}
		table := ""
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "*") {
				table = line
			}
			if strings.HasPrefix(line, "-A ") {
				out = append(out, fmt.Sprintf("%s %s %s", program, table, line))
			}
		}
	}
	return out, nil
}

// After any changes the kernel holds what a fresh start makes, and nobody takes our own changes for those of others.
func TestRandomChanges(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			b := newBackend(t, Settings{})
			c := modeltest.New(seed, modeltest.Network())
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
			b.look()
			select {
			case <-b.Tampered():
				t.Error("its own changes were taken for another's")
			default:
			}
			changed := there(t)
			for _, how := range []string{"over the old", "afresh"} {
				if how == "afresh" {
					if err := Cleanup(); err != nil {
						t.Fatal(err)
					}
				}
				if err := newBackend(t, Settings{}).Replace(t.Context(), c.Rules()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(there(t), changed); diff != "" {
					t.Errorf("-%s +changed:\n%.5000s", how, diff)
				}
			}
		})
	}
}

// Whatever objects there are, the kernel takes what follows from them, and nothing of it stays.
func TestHostileObjects(t *testing.T) {
	b := newBackend(t, Settings{})
	for _, h := range modeltest.HostileObjects() {
		t.Run(h.Name, func(t *testing.T) {
			c := h.Cluster(modeltest.Network())
			if err := b.Replace(t.Context(), model.Rules{Network: c.Net}); err != nil {
				t.Fatal(err)
			}
			empty := there(t)
			if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
				t.Fatal(err)
			}
			changed := there(t)
			if err := b.Replace(t.Context(), c.Rules()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(there(t), changed); diff != "" {
				t.Errorf("-replaced +changed:\n%.2000s", diff)
			}
			for name := range c.Services {
				c.State.DeleteService(name)
			}
			if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(empty, there(t)); diff != "" {
				t.Errorf("with all Services gone, -before +after:\n%.2000s", diff)
			}
		})
	}
}

// simple is one Service, 10.96.0.1:80, with some endpoints.
func simple(endpoints ...string) model.Rules {
	balance := model.Route{Action: model.Balance}
	port := &model.Port{
		Key:       model.PortKey{Service: model.Name{Namespace: "ns", Name: "web"}, Protocol: model.TCP, Family: model.IPv4},
		Frontends: []model.Frontend{{Kind: model.ClusterIP, Addr: netip.MustParseAddr("10.96.0.1"), Port: 80, Routes: model.Routes{balance, balance, balance}}},
	}
	for _, e := range endpoints {
		port.Cluster = append(port.Cluster, model.Endpoint{Addr: netip.MustParseAddrPort(e)})
	}
	return model.Rules{Network: modeltest.Network(), Ports: []*model.Port{port}}
}

func TestSchedulers(t *testing.T) {
	for _, scheduler := range []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "fo", "ovf", "mh"} {
		t.Run(scheduler, func(t *testing.T) {
			b := newBackend(t, Settings{Scheduler: scheduler})
			if err := b.Replace(t.Context(), simple("10.244.1.1:8080", "10.244.1.2:8080")); err != nil {
				t.Fatal(err)
			}
			servers, err := b.handle.GetServices()
			if err != nil || len(servers) != 1 || servers[0].SchedName != scheduler {
				t.Errorf("servers %+v, %v", servers, err)
			}
		})
	}
	b := newBackend(t, Settings{Scheduler: "nosuch"})
	if err := b.Replace(t.Context(), simple("10.244.1.1:8080")); err == nil || !strings.Contains(err.Error(), `scheduler "nosuch"`) {
		t.Errorf("a scheduler that the kernel does not have: %v", err)
	}
}

// What somebody else takes away is noticed, and made again.
func TestTampered(t *testing.T) {
	b := newBackend(t, Settings{})
	rules := simple("10.244.1.1:8080")
	if err := b.Replace(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	before := there(t)
	for what, tamper := range map[string]func() error{
		"address": func() error { return netlink.AddrDel(b.link, deviceAddr(netip.MustParseAddr("10.96.0.1"))) },
		"device":  func() error { return netlink.LinkDel(b.link) },
		"rules":   func() error { return exec.Command("iptables", "-t", "nat", "-F").Run() },
		"servers": func() error {
			err := b.handle.Flush()
			b.look()
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			if err := tamper(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-b.Tampered():
			case <-time.After(time.Minute):
				t.Fatal("nobody noticed")
			}
			if err := b.Replace(t.Context(), rules); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, there(t)); diff != "" {
				t.Errorf("-before +restored:\n%s", diff)
			}
		})
	}
}

// Virtual servers of others, in ranges that are excluded, are left alone.
func TestExclude(t *testing.T) {
	b := newBackend(t, Settings{Exclude: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	other := b.service(server{netip.MustParseAddrPort("192.0.2.1:80"), model.TCP}, 0)
	if err := b.handle.NewService(other); err != nil {
		t.Fatal(err)
	}
	if err := b.Replace(t.Context(), simple("10.244.1.1:8080")); err != nil {
		t.Fatal(err)
	}
	b.look()
	if !b.handle.IsServicePresent(other) {
		t.Error("it is gone")
	}
	if err := b.handle.DelService(other); err != nil {
		t.Error(err)
	}
}

// dummy makes a device with an address, until the test ends.
func dummy(t *testing.T, name, addr string) {
	t.Helper()
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	})
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, deviceAddr(netip.MustParseAddr(addr))); err != nil {
		t.Fatal(err)
	}
}

// An address that the node has stays the node's when it is a Service's, too, also if it becomes that while the Service is
// there; and NodePorts are served at one that the node gets.
func TestOwnAddresses(t *testing.T) {
	b := newBackend(t, Settings{})
	dummy(t, "uplink", "192.0.2.1")
	rules := simple("10.244.1.1:8080")
	rules.Network.AllNodePorts = true
	balance := model.Route{Action: model.Balance, Masquerade: true}
	for _, f := range []model.Frontend{
		{Kind: model.ExternalIP, Addr: netip.MustParseAddr("192.0.2.1"), Port: 80}, {Kind: model.LoadBalancer, Addr: netip.MustParseAddr("192.0.2.2"), Port: 80},
		{Kind: model.NodePort, Port: 30080},
	} {
		f.Routes = model.Routes{balance, balance, balance}
		rules.Ports[0].Frontends = append(rules.Ports[0].Frontends, f)
	}
	check := func(want ...string) {
		t.Helper()
		if err := b.Replace(t.Context(), rules); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, line := range there(t) {
			if strings.Contains(line, "192.0.2.") && !strings.HasPrefix(line, "set KUBE-EXT") && !strings.HasPrefix(line, "set KUBE-LOAD") && !strings.Contains(line, " to ") {
				got = append(got, line)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +there:\n%s", diff)
		}
	}
	server := func(addr string) string { return "server " + addr + "/tcp rr flags 0 timeout 0" }
	nodePort := func(addr string) string { return "set KUBE-NODE-PORT: " + addr + " 6 30080 <nil>/0" }
	check("address 192.0.2.2/32", server("192.0.2.1:30080"), server("192.0.2.1:80"), server("192.0.2.2:80"), "set KUBE-IPVS-IPS: 192.0.2.2 0 0 <nil>/0", nodePort("192.0.2.1"))
	told := func(what string) {
		t.Helper()
		select {
		case <-b.Tampered():
		case <-time.After(time.Minute):
			t.Fatalf("nobody was told that %s", what)
		}
	}
	t.Run("second", func(t *testing.T) {
		dummy(t, "second", "192.0.2.2")
		told("the node has the address of a load balancer")
		check(server("192.0.2.1:30080"), server("192.0.2.1:80"), server("192.0.2.2:30080"), server("192.0.2.2:80"), nodePort("192.0.2.1"), nodePort("192.0.2.2"))
	})
	told("the node lost an address")
	check("address 192.0.2.2/32", server("192.0.2.1:30080"), server("192.0.2.1:80"), server("192.0.2.2:80"), "set KUBE-IPVS-IPS: 192.0.2.2 0 0 <nil>/0", nodePort("192.0.2.1"))
	if err := b.Apply(t.Context(), []model.Change{{Old: rules.Ports[0]}}); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("uplink")
	if err != nil {
		t.Fatal(err)
	}
	if addrs, err := netlink.AddrList(link, unix.AF_INET); err != nil || len(addrs) != 1 {
		t.Errorf("without the Service the node has %v, %v", addrs, err)
	}
}

// A kube-proxy's sets are taken over, though it makes them smaller; its virtual servers and ours go when all is cleaned up, and
// those of others stay.
func TestTakesOver(t *testing.T) {
	b := newBackend(t, Settings{})
	for _, family := range []model.Family{model.IPv4, model.IPv6} {
		for set, kind := range setTypes {
			options := netlink.IpsetCreateOptions{Family: unix.AF_INET, MaxElements: 65536}
			if family == model.IPv6 {
				options.Family = unix.AF_INET6
			}
			if kind == bitmapPort {
				options = netlink.IpsetCreateOptions{PortTo: 65535}
			}
			if err := netlink.IpsetCreate(setName(family, set), kind, options); err != nil {
				t.Fatalf("%s: %v", set, err)
			}
		}
	}
	if err := b.Replace(t.Context(), simple("10.244.1.1:8080")); err != nil {
		t.Fatal(err)
	}
	dummy(t, "uplink", "192.0.2.1")
	others := b.service(server{netip.MustParseAddrPort("192.0.2.1:80"), model.TCP}, 0)
	kubeProxys := b.service(server{netip.MustParseAddrPort("192.0.2.1:30080"), model.UDP}, 0)
	if err := netlink.IpsetCreate("KUBE-NODE-PORT-UDP", bitmapPort, netlink.IpsetCreateOptions{PortTo: 65535}); err != nil {
		t.Fatal(err)
	}
	if err := changePort(nl.IPSET_CMD_ADD, "KUBE-NODE-PORT-UDP", 30080); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*ipvs.Service{others, kubeProxys} {
		if err := b.handle.NewService(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := Cleanup(); err != nil {
		t.Fatal(err)
	}
	left, err := b.handle.GetServices()
	if err != nil || len(left) != 1 || serverOf(left[0]) != serverOf(others) {
		t.Errorf("left after Cleanup: %+v, %v", left, err)
	}
	if err := b.handle.DelService(others); err != nil {
		t.Error(err)
	}
}

// A destination with a connection stays until that is over, and gets no new ones.
func TestGracefulTermination(t *testing.T) {
	b := newBackend(t, Settings{})
	endpoint := func(addr string) (string, net.Listener) {
		dummy(t, "pods"+addr[len(addr)-1:], addr)
		l, err := net.Listen("tcp", addr+":8080")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l.Addr().String(), l
	}
	one, listener := endpoint("10.244.1.1")
	two, _ := endpoint("10.244.1.2")
	if err := b.Replace(t.Context(), simple(one)); err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", "10.96.0.1:80", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	served, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(t.Context(), []model.Change{{Old: simple(one).Ports[0], New: simple(two).Ports[0]}}); err != nil {
		t.Fatal(err)
	}
	b.look()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if n, err := served.Read(make([]byte, 1)); n != 1 {
		t.Errorf("the connection did not stay: %v", err)
	}
	destinations := func() (out []string) {
		t.Helper()
		all, err := b.handle.GetDestinations(b.service(server{netip.MustParseAddrPort("10.96.0.1:80"), model.TCP}, 0))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range all {
			out = append(out, fmt.Sprintf("%s weight %d", endpointOf(d), d.Weight))
		}
		slices.Sort(out)
		return out
	}
	if diff := cmp.Diff([]string{one + " weight 0", two + " weight 1"}, destinations()); diff != "" {
		t.Errorf("while the connection is open (-want +there):\n%s", diff)
	}
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil { // so that Close resets it
		t.Fatal(err)
	}
	conn.Close()
	served.Close()
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(time.Second) {
		if b.look(); len(destinations()) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the destination never goes: %v", destinations())
		}
	}
}
