package proxy

import (
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/test/kernel"
)

// What the configuration says of the kernel's settings is what the kernel has once the rules are there.
func TestKernelSettings(t *testing.T) {
	n := network(t)
	p := newProgram(t, "iptables")
	const conntrack = "net/netfilter/nf_conntrack_"
	want := map[string]string{
		conntrack + "tcp_timeout_established": "4321", conntrack + "tcp_timeout_close_wait": "321", conntrack + "udp_timeout": "21",
		conntrack + "udp_timeout_stream": "61", conntrack + "tcp_be_liberal": "1", "net/ipv4/conf/all/route_localnet": "1",
	}
	for name := range want {
		before := readSysctl(t, name)
		t.Cleanup(func() { writeSysctl(t, name, before) })
	}
	writeSysctl(t, "net/ipv4/conf/all/route_localnet", "0")
	p.args = append(p.args, "--conntrack-tcp-timeout-established", "4321s", "--conntrack-tcp-timeout-close-wait", "321s", "--conntrack-udp-timeout", "21s",
		"--conntrack-udp-timeout-stream", "61s", "--conntrack-tcp-be-liberal", "--conntrack-max-per-core", "0")
	p.write(service(0), slice(0, "web", "pod-a"))
	p.start()
	n.eventually(t, 0, packet{from: "client", to: "cluster-1:80", want: "pod-a kept"})
	for name, value := range want {
		if got := readSysctl(t, name); got != value {
			t.Errorf("%s is %s, want %s", name, got, value)
		}
	}
}

func readSysctl(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func writeSysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		t.Error(err)
	}
}

// With --init-only the kernel's settings are made that the mode needs, and nothing else.
func TestInitOnly(t *testing.T) {
	network(t)
	withOthers(t)
	const established = "net/netfilter/nf_conntrack_tcp_timeout_established"
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			kernel.Require(t, m.needs...)
			p := newProgram(t, m.name)
			want := map[string]string{established: "4322"}
			switch m.name {
			case "iptables":
				want["net/ipv4/conf/all/route_localnet"] = "1"
			case "ipvs":
				want["net/ipv4/vs/conntrack"], want["net/ipv4/vs/expire_nodest_conn"], want["net/ipv4/conf/all/arp_announce"] = "1", "1", "2"
				p.args = append(p.args, "--ipvs-strict-arp")
			}
			for name := range want {
				before := readSysctl(t, name)
				t.Cleanup(func() { writeSysctl(t, name, before) })
				if name != established {
					writeSysctl(t, name, "0")
				}
			}
			there := everythingThere(t)
			p.args = append(p.args, "--init-only", "--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "4322s")
			if out, err := exec.Command(p.path, p.args...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for name, value := range want {
				if got := readSysctl(t, name); got != value {
					t.Errorf("%s is %s, want %s", name, got, value)
				}
			}
			if diff := cmp.Diff(there, everythingThere(t)); diff != "" {
				t.Errorf("-before +after:\n%s", diff)
			}
			p.args = append(p.args, "--conntrack-udp-timeout", "-1s")
			if out, err := exec.Command(p.path, p.args...).CombinedOutput(); err == nil {
				t.Errorf("with a mistake: %s", out)
			}
		})
	}
}

// In mode iptables the node reaches NodePorts at its loopback address too, unless that is switched off, and others on the link
// do not.
func TestLocalhostNodePorts(t *testing.T) {
	n := network(t)
	loopback := host{"loopback", "node", addrs("127.0.0.1", "::1")}
	to := netip.MustParseAddrPort("127.0.0.1:30080")
	for _, on := range []string{"true", "false"} {
		t.Run(on, func(t *testing.T) {
			p := newProgram(t, "iptables")
			t.Cleanup(func() { writeSysctl(t, "net/ipv4/conf/all/route_localnet", "0") })
			p.args = append(p.args, "--iptables-localhost-nodeports="+on)
			p.write(service(0, nodePort(30080)), slice(0, "web", "pod-a", "remote-a"))
			p.start()
			n.eventually(t, 0, packet{from: "client", to: "node:30080", want: "pod-a|remote-a masq"})
			got, err := n.send(loopback, to, model.TCP, 0)
			if err != nil || got.server.IsValid() != (on == "true") {
				t.Errorf("%+v, %v", got, err)
			}
			if got, err := n.send(hostOf("outside"), to, model.TCP, 0); err == nil && got.server.IsValid() {
				t.Errorf("from outside: %+v", got)
			}
		})
	}
}

// A machine without an API server finds its own addresses, of which nobody told it.
func TestOwnAddresses(t *testing.T) {
	n := network(t)
	p := newProgram(t, "nftables")
	at := slices.Index(p.args, "--bind-address")
	p.args = slices.Delete(p.args, at, at+2)
	p.write(service(0, nodePort(30080)), slice(0, "web", "pod-a"),
		service(1, named("six", family(1).cluster(1)), nodePort(30080)), slice(1, "six", "pod-a"))
	p.start()
	n.eventually(t, 0, packet{from: "outside", to: "node:30080", want: "pod-a masq"})
	for f := range family(2) { // of several addresses the kernel prefers one
		n.eventually(t, f, packet{from: "client", to: "cluster-1:80", want: "pod-a kept"})
		served := 0
		for _, at := range []string{"node:30080", "node-second:30080", "bridge:30080"} {
			if got, err := n.send(hostOf("outside"), f.address(at), model.TCP, 0); err == nil && got.server.IsValid() {
				served++
			}
		}
		if served != 1 {
			t.Errorf("%s: %d addresses of the node serve NodePorts", f.model(), served)
		}
	}
}
