// Package ipvs makes the kernel treat packets to Services as package model says, by IPVS, the kernel's own load balancer.
//
// Each address and port of a Service is a virtual server whose destinations are the endpoints. The addresses are those of a
// device that leads nowhere, so that the kernel takes packets for them as its own. ipsets hold the addresses by what is to
// be done with them, and a constant number of iptables rules does it.
//
// Kubernetes calls this mode deprecated; nftables does more, and quicker.
package ipvs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/sysctl"
	"github.com/orlop/orlop/proxy/xtables"
)

// Settings are what a configuration says of this mode alone.
type Settings struct {
	Scheduler string // as rr; the kernel must have it
	StrictARP bool
	// Timeouts of connections; 0 leaves the kernel's.
	TCP, TCPFin, UDP time.Duration
	// Exclude are addresses of virtual servers that are not ours.
	Exclude []netip.Prefix
}

// device has the addresses of Services; its name is kube-proxy's.
const device = "kube-ipvs0"

// Backend is a proxy.Backend.
type Backend struct {
	log      *slog.Logger
	settings Settings
	tampered chan struct{}
	handle   *ipvs.Handle
	rules    *xtables.Handle
	// deviceIndex is the link's, which is there before any address is heard of.
	deviceIndex atomic.Int64

	mu      sync.Mutex // of all below, and of what the kernel holds
	link    netlink.Link
	network model.Network
	node    node
	ports   map[model.PortKey]*described
	// servers are the virtual servers that are there. One may pass from a port to another in one go.
	servers map[server]served
	// counts are how many ports need an entry or an address that several may have.
	counts map[any]int
	// leaving are destinations that get nothing new and go when their connections have ended.
	leaving map[leaver]bool
	stop    context.CancelFunc // of watch, nil before it began
	ended   sync.WaitGroup
}

// served is a virtual server that is there.
type served struct {
	destinations
	by model.PortKey
}

// leaver is a destination of a virtual server.
type leaver struct {
	server   server
	endpoint netip.AddrPort
}

// New is a backend in the network namespace of the calling thread. Nothing is changed before Replace.
func New(log *slog.Logger, s Settings) (*Backend, error) {
	handle, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("ipvs: this kernel does not have it; load the module ip_vs, or use mode nftables: %w", err)
	}
	rules, err := xtables.Open(log, hooks(), xtables.UsualPoll)
	if err != nil {
		handle.Close()
		return nil, err
	}
	return &Backend{log: log, settings: s, tampered: make(chan struct{}, 1), handle: handle, rules: rules}, nil
}

// Prepare sets what IPVS needs to work with connection tracking, and to answer for no address that is another node's. It is
// all that takes more than CAP_NET_ADMIN. The kernel's conn_reuse_mode stays as it is: since Linux 5.9 its default does not
// delay connections, and without it those from a port that was used before go to endpoints that are about to end.
func Prepare(s Settings) error {
	all := []sysctl.Setting{
		{Path: "net/ipv4/vs/conntrack", Value: 1}, {Path: "net/ipv4/vs/expire_nodest_conn", Value: 1},
		{Path: "net/ipv4/vs/expire_quiescent_template", Value: 1}, {Path: "net/ipv4/ip_forward", Value: 1},
	}
	if s.StrictARP {
		all = append(all, sysctl.Setting{Path: "net/ipv4/conf/all/arp_ignore", Value: 1}, sysctl.Setting{Path: "net/ipv4/conf/all/arp_announce", Value: 2})
	}
	var errs []error
	for _, one := range all {
		errs = append(errs, one.Set())
	}
	return errors.Join(errs...)
}

// Replace is of proxy.Backend. What is there and is to be there is left alone, and with it its connections.
func (b *Backend) Replace(ctx context.Context, r model.Rules) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := xtables.CheckNetwork(&r.Network); err != nil {
		return fmt.Errorf("ipvs: %w", err)
	}
	b.network = r.Network
	if err := b.prepare(); err != nil {
		return fmt.Errorf("ipvs: %w", err)
	}
	b.ports, b.counts, b.leaving = map[model.PortKey]*described{}, map[any]int{}, map[leaver]bool{}
	b.servers = map[server]served{}
	all := &described{servers: map[server]destinations{}}
	for _, port := range r.Ports {
		d := b.node.describe(port)
		b.ports[port.Key] = d
		for s, ds := range d.servers {
			all.servers[s] = ds
			b.servers[s] = served{ds, port.Key}
		}
		for _, e := range d.entries {
			if b.counts[e]++; b.counts[e] == 1 {
				all.entries = append(all.entries, e)
			}
		}
		for _, a := range d.addrs {
			if b.counts[a]++; b.counts[a] == 1 {
				all.addrs = append(all.addrs, a)
			}
		}
	}
	// An address is served once all is there that says to whom.
	rules := func(*described) error { return b.replaceRules(ctx) }
	for _, step := range []func(*described) error{b.replaceSets, rules, b.replaceServers, b.replaceAddrs} {
		if err := step(all); err != nil {
			return fmt.Errorf("ipvs: %w", err)
		}
	}
	return nil
}

func (b *Backend) replaceRules(ctx context.Context) error {
	var errs []error
	for family, p := range b.rules.Programs {
		if slices.Contains(b.network.Families, family) {
			errs = append(errs, setRules(ctx, p, &b.network))
		} else if _, err := os.Stat("/proc/net/if_inet6"); family == model.IPv4 || err == nil {
			errs = append(errs, p.Cleanup(ctx))
		}
	}
	return errors.Join(append(errs, dropSets(b.network.Families), b.rules.Settled())...)
}

// prepare makes the device and sets what the kernel needs.
func (b *Backend) prepare() error {
	if err := Prepare(b.settings); err != nil {
		b.log.Warn("settings of the kernel stay as they are", "err", err)
	}
	if t := b.settings; t.TCP != 0 || t.TCPFin != 0 || t.UDP != 0 {
		if err := b.handle.SetConfig(&ipvs.Config{TimeoutTCP: t.TCP, TimeoutTCPFin: t.TCPFin, TimeoutUDP: t.UDP}); err != nil {
			return fmt.Errorf("timeouts: %w", err)
		}
	}
	link, err := netlink.LinkByName(device)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = device
		if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("device %s: %w", device, err)
		}
		link, err = netlink.LinkByName(device)
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	b.link = link
	b.deviceIndex.Store(int64(link.Attrs().Index))
	if err := b.watch(); err != nil { // before the node's addresses are looked at, so that no change of them is missed
		return err
	}
	b.node, err = nodeBut(link, &b.network)
	return err
}

// nodeBut is this node without a device. NodePorts are not served at loopback addresses, which IPVS can't do.
func nodeBut(device netlink.Link, n *model.Network) (node, error) {
	out := node{own: map[netip.Addr]bool{}}
	list, err := netlink.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return out, fmt.Errorf("addresses of the node: %w", err)
	}
	for _, a := range list {
		addr, _ := netip.AddrFromSlice(a.IP)
		if addr = addr.Unmap(); a.LinkIndex != device.Attrs().Index && !addr.IsLoopback() && !addr.IsLinkLocalUnicast() {
			out.own[addr] = true
		}
	}
	if out.nodePorts = slices.DeleteFunc(slices.Clone(n.NodePorts), netip.Addr.IsLoopback); n.AllNodePorts {
		out.nodePorts = slices.SortedFunc(maps.Keys(out.own), netip.Addr.Compare)
	}
	return out, nil
}

// Apply is of proxy.Backend.
func (b *Backend) Apply(_ context.Context, changes []model.Change) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range changes {
		if err := b.applyLocked(c); err != nil {
			return fmt.Errorf("ipvs: %s: %w", c.Key(), err)
		}
	}
	return nil
}

// applyLocked adds what is new before it removes what is old, so that an address that stays is served all the time.
func (b *Backend) applyLocked(c model.Change) error {
	before, now := b.ports[c.Key()], &described{}
	if before == nil {
		before = &described{}
	}
	if delete(b.ports, c.Key()); c.New != nil {
		now = b.node.describe(c.New)
		b.ports[c.Key()] = now
	}
	for _, a := range now.addrs {
		if b.counts[a]++; b.counts[a] == 1 {
			if err := b.addAddr(a); err != nil {
				return err
			}
		}
	}
	for s, ds := range now.servers {
		old, there := b.servers[s]
		if err := b.setServer(s, old.destinations, ds, there); err != nil {
			return err
		}
		b.servers[s] = served{ds, c.Key()}
	}
	for _, e := range now.entries {
		if b.counts[e]++; b.counts[e] == 1 {
			if err := e.add(""); err != nil {
				return err
			}
		}
	}
	return b.removeLocked(c.Key(), before, now)
}

func (b *Backend) removeLocked(key model.PortKey, before, now *described) error {
	for _, e := range before.entries {
		if b.counts[e]--; b.counts[e] == 0 {
			delete(b.counts, e)
			if err := e.del(); err != nil {
				return err
			}
		}
	}
	for s := range before.servers {
		if _, stays := now.servers[s]; stays || b.servers[s].by != key {
			continue
		}
		delete(b.servers, s)
		if err := b.handle.DelService(b.service(s, 0)); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("virtual server %s: %w", s, err)
		}
	}
	for _, a := range before.addrs {
		if b.counts[a]--; b.counts[a] == 0 {
			delete(b.counts, a)
			if err := b.removeAddr(a); err != nil {
				return err
			}
		}
	}
	return nil
}

// Tampered is of proxy.Backend.
func (b *Backend) Tampered() <-chan struct{} { return b.tampered }

// Close is of proxy.Backend.
func (b *Backend) Close() error {
	if b.stop != nil {
		b.stop()
	}
	b.ended.Wait()
	b.handle.Close()
	return b.rules.Close()
}
