package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/test/kernel"
)

// The network:
//
//	pod-a, pod-b, client ──veth── cni0 │node│ eth0 ──veth── lan ── outside host, router
//	     10.244.0.2, .3, .4  10.244.0.1│    │192.0.2.1, .2   │         203.0.113.7, 192.0.2.254
//	                                                         └──veth── remote: node 192.0.2.9 with pods 10.244.1.2, .3
//
// and the same with IPv6. The outside host has a route for Services' addresses to the node, as a load balancer has.
type topology struct {
	namespaces map[string]*namespace
}

// namespace is a network namespace, held open by a descriptor.
type namespace struct {
	name   string
	file   *os.File // nil for the node, where all threads of this process are
	handle *netlink.Handle
}

// host is where packets come from and go to, and its addresses, IPv4 first.
type host struct {
	name, namespace string
	addrs           [2]netip.Addr
}

func addrs(v4, v6 string) [2]netip.Addr {
	return [2]netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}
}

var hosts = []host{
	{"pod-a", "pod-a", addrs("10.244.0.2", "fd00:244::2")},
	{"pod-b", "pod-b", addrs("10.244.0.3", "fd00:244::3")},
	{"client", "client", addrs("10.244.0.4", "fd00:244::4")},
	{"remote-a", "remote", addrs("10.244.1.2", "fd00:244::1:2")},
	{"remote-b", "remote", addrs("10.244.1.3", "fd00:244::1:3")},
	{"node", "node", addrs("192.0.2.1", "2001:db8::1")},
	{"node-second", "node", addrs("192.0.2.2", "2001:db8::2")},
	{"bridge", "node", addrs("10.244.0.1", "fd00:244::1")},
	{"outside", "outside", addrs("203.0.113.7", "2001:db8:f::7")},
}

func hostOf(name string) host {
	for _, h := range hosts {
		if h.name == name {
			return h
		}
	}
	panic("no host " + name)
}

func hostAt(addr netip.Addr) string {
	for _, h := range hosts {
		if h.addrs[0] == addr || h.addrs[1] == addr {
			return h.name
		}
	}
	return addr.String()
}

var (
	once   sync.Once
	shared *topology
	failed error
)

// network makes the topology for the first test that asks; it vanishes with the process.
func network(t testing.TB) *topology {
	t.Helper()
	kernel.Require(t, kernel.Root)
	once.Do(func() { shared, failed = build() })
	if failed != nil {
		t.Fatal(failed)
	}
	shared.await(t)
	return shared
}

// await waits until links have what IPv6 needs: addresses of their own, and neighbours that answer.
func (n *topology) await(t testing.TB) {
	t.Helper()
	n.serve(t)
	for _, from := range []string{"client", "pod-a", "node", "outside"} {
		for _, to := range []string{"pod-a", "remote-a"} {
			for end := time.Now().Add(kernel.Patient(20 * time.Second)); ; {
				got, err := n.send(hostOf(from), netip.AddrPortFrom(hostOf(to).addrs[1], servedPorts[0]), model.TCP, 0)
				if err == nil && got.server.IsValid() {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s does not reach %s: %+v, %v", from, to, got, err)
				}
			}
		}
	}
}

func build() (*topology, error) {
	n := &topology{namespaces: map[string]*namespace{}}
	node, err := netlink.NewHandle()
	if err != nil {
		return nil, err
	}
	n.namespaces["node"] = &namespace{name: "node", handle: node}
	for _, name := range []string{"pod-a", "pod-b", "client", "remote", "outside"} {
		ns, err := newNamespace(name)
		if err != nil {
			return nil, fmt.Errorf("namespace %s: %w", name, err)
		}
		n.namespaces[name] = ns
	}
	return n, errors.Join(n.pods(), n.lan(), n.routes(), n.forwarding())
}

// newNamespace makes one on a thread that ends with it.
func newNamespace(name string) (*namespace, error) {
	made := make(chan error, 1)
	ns := &namespace{name: name}
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread dies
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		var err error
		if ns.file, err = os.Open("/proc/thread-self/ns/net"); err == nil {
			ns.handle, err = netlink.NewHandle()
		}
		if err == nil {
			err = settle()
		}
		made <- err
	}()
	return ns, <-made
}

// settle has IPv6 addresses usable at once.
func settle() error {
	for _, conf := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/accept_dad", []byte("0"), 0); err != nil {
			return err
		}
	}
	return kernel.LoopbackUp()
}

// in runs f on a thread that is in the namespace.
func (ns *namespace) in(f func() error) error {
	if ns.file == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// link joins two namespaces by a veth pair.
func (n *topology) link(a, nameA, b, nameB string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: nameB}
	if file := n.namespaces[b].file; file != nil {
		veth.PeerNamespace = netlink.NsFd(file.Fd())
	}
	if err := n.namespaces[a].handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s: %w", nameA, err)
	}
	return errors.Join(n.up(a, nameA), n.up(b, nameB))
}

func (n *topology) up(ns, name string) error {
	h := n.namespaces[ns].handle
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s in %s: %w", name, ns, err)
	}
	return h.LinkSetUp(link)
}

func (n *topology) bridge(ns, name string, ports ...string) error {
	h := n.namespaces[ns].handle
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.LinkAdd(bridge); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	for _, port := range ports {
		link, err := h.LinkByName(port)
		if err != nil {
			return err
		}
		// A packet of a pod to itself comes back through the port that it came from.
		if err := errors.Join(h.LinkSetMaster(link, bridge), h.LinkSetHairpin(link, true)); err != nil {
			return err
		}
	}
	return h.LinkSetUp(bridge)
}

func (n *topology) addr(ns, name string, addresses ...string) error {
	h := n.namespaces[ns].handle
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("%s at %s in %s: %w", a, name, ns, err)
		}
	}
	return nil
}

func (n *topology) dropAddr(ns, name, address string) error {
	h := n.namespaces[ns].handle
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	return h.AddrDel(link, addr)
}

func (n *topology) route(ns, to, via string) error {
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	if err := n.namespaces[ns].handle.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}); err != nil {
		return fmt.Errorf("route to %s via %s in %s: %w", to, via, ns, err)
	}
	return nil
}

func (n *topology) pods() error {
	var errs []error
	for _, pod := range []string{"pod-a", "pod-b", "client"} {
		errs = append(errs, n.link("node", "veth-"+pod, pod, "eth0"))
	}
	errs = append(errs, n.bridge("node", "cni0", "veth-pod-a", "veth-pod-b", "veth-client"))
	errs = append(errs, n.addr("node", "cni0", "10.244.0.1/24", "fd00:244::1/112"))
	for _, pod := range []string{"pod-a", "pod-b", "client"} {
		h := hostOf(pod)
		errs = append(errs, n.addr(pod, "eth0", h.addrs[0].String()+"/24", h.addrs[1].String()+"/112"),
			n.route(pod, "0.0.0.0/0", "10.244.0.1"), n.route(pod, "::/0", "fd00:244::1"))
	}
	return errors.Join(errs...)
}

func (n *topology) lan() error {
	return errors.Join(
		n.link("node", "eth0", "outside", "to-node"),
		n.link("remote", "eth0", "outside", "to-remote"),
		n.bridge("outside", "lan", "to-node", "to-remote"),
		n.addr("outside", "lan", "192.0.2.254/24", "2001:db8::254/64"),
		n.addr("outside", "lo", "203.0.113.7/32", "2001:db8:f::7/128"),
		n.addr("node", "eth0", "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64"),
		n.addr("remote", "eth0", "192.0.2.9/24", "2001:db8::9/64"),
		n.addr("remote", "lo", "10.244.1.2/32", "10.244.1.3/32", "fd00:244::1:2/128", "fd00:244::1:3/128"),
	)
}

func (n *topology) routes() error {
	return errors.Join(
		n.route("node", "0.0.0.0/0", "192.0.2.254"), n.route("node", "::/0", "2001:db8::254"),
		n.route("node", "10.244.1.0/24", "192.0.2.9"), n.route("node", "fd00:244::1:0/112", "2001:db8::9"),
		n.route("remote", "0.0.0.0/0", "192.0.2.254"), n.route("remote", "::/0", "2001:db8::254"),
		n.route("remote", "10.244.0.0/24", "192.0.2.1"), n.route("remote", "fd00:244::/112", "2001:db8::1"),
		n.route("outside", "10.244.1.0/24", "192.0.2.9"), n.route("outside", "fd00:244::1:0/112", "2001:db8::9"),
		n.route("outside", "10.244.0.0/24", "192.0.2.1"), n.route("outside", "fd00:244::/112", "2001:db8::1"),
		n.route("outside", "10.96.0.0/16", "192.0.2.1"), n.route("outside", "fd00:96::/64", "2001:db8::1"),
		n.route("outside", "198.51.100.0/24", "192.0.2.1"), n.route("outside", "2001:db8:e::/64", "2001:db8::1"),
	)
}

// forwarding has the node and the router send on what is not for them. What the bridge sends on from pod to pod of one
// node goes through the rules as well, else an answer of a pod would not find back to its client: see br_netfilter.
func (n *topology) forwarding() error {
	var errs []error
	for _, name := range []string{"node", "outside"} {
		errs = append(errs, n.namespaces[name].in(func() error {
			return errors.Join(settle(),
				os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
				os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
		}))
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		errs = append(errs, os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+family, []byte("1"), 0))
	}
	return errors.Join(errs...)
}
