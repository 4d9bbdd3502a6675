package proxy

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/test/kernel"
)

// A Service at an address that the node has takes its port there and no other, and when it goes the node keeps the address.
func TestServiceAtNode(t *testing.T) {
	n := network(t)
	l, err := net.Listen("tcp", netip.AddrPortFrom(hostOf("node").addrs[0], 7777).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
	reachable := func(t *testing.T, when string) {
		t.Helper()
		got, err := n.send(hostOf("outside"), netip.MustParseAddrPort(l.Addr().String()), model.TCP, 0)
		if err != nil || hostAt(got.server.Addr()) != "node" || hostAt(got.client.Addr()) != "outside" {
			t.Errorf("%s: the node's own server: %v, %v", when, got, err)
		}
	}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			kernel.Require(t, m.needs...)
			p := newProgram(t, m.name)
			p.write(service(0, external(hostOf("node").addrs[0].String())), slice(0, "web", "pod-a", "remote-a"))
			p.start()
			n.eventually(t, 0, packet{from: "outside", to: "node:80", want: "pod-a|remote-a masq"})
			reachable(t, "beside the Service")
			p.write(service(0), slice(0, "web", "pod-a", "remote-a"))
			n.eventually(t, 0, packet{from: "outside", to: "node:80", want: "reject"})
			reachable(t, "after the Service")
			p.cleanup(t)
			reachable(t, "after --cleanup")
		})
	}
}

// The rule of a pod's hostPort, which network plugins append, takes packets to the node and not those to Services.
func TestHostPorts(t *testing.T) {
	n := network(t)
	rule := strings.Fields("PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 80 -j DNAT --to-destination " + netip.AddrPortFrom(hostOf("pod-b").addrs[0], 8080).String())
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			kernel.Require(t, append(m.needs, kernel.Command("iptables"))...)
			p := newProgram(t, m.name)
			p.write(service(0, external(family(0).public(1)), loadBalancer(family(0).public(2))), slice(0, "web", "pod-a"))
			p.start()
			n.eventually(t, 0, packet{from: "client", to: "cluster-1:80", want: "pod-a kept"})
			command(t, "iptables", append([]string{"-t", "nat", "-A"}, rule...)...)
			t.Cleanup(func() { command(t, "iptables", append([]string{"-t", "nat", "-D"}, rule...)...) })
			for _, s := range []packet{
				{from: "client", to: "cluster-1:80", want: "pod-a kept"}, {from: "outside", to: "public-1:80", want: "pod-a masq"},
				{from: "outside", to: "public-2:80", want: "pod-a masq"}, {from: "outside", to: "node:80", want: "pod-b kept"},
			} {
				if problem := n.check(0, s, s.want); problem != "" {
					t.Errorf("%v: %s", s, problem)
				}
			}
		})
	}
}
