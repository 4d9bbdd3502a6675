package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/xtables"
)

// Cleanup removes what this backend, or kube-proxy in mode ipvs, made. Virtual servers are only removed if their addresses
// are in our sets or at our device: others are somebody else's.
func Cleanup() error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return nil // never used
	}
	errs := []error{removeServers(link), xtables.Cleanup(), dropSets(nil)}
	if err := netlink.LinkDel(link); err != nil {
		errs = append(errs, fmt.Errorf("device %s: %w", device, err))
	}
	return errors.Join(errs...)
}

func removeServers(link netlink.Link) error {
	handle, err := ipvs.New("")
	if err != nil {
		return nil //nolint:nilerr // a kernel that does not have it has no virtual servers
	}
	defer handle.Close()
	all, err := handle.GetServices()
	if err != nil || len(all) == 0 {
		return err
	}
	ours, err := frontends(link)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range all {
		if s.FWMark == 0 && ours.have(serverOf(s)) {
			errs = append(errs, handle.DelService(s))
		}
	}
	return errors.Join(errs...)
}

// known is what tells virtual servers of ours, or a kube-proxy's, from those of others.
type known struct {
	addrs   map[netip.Addr]bool // of the device
	servers map[server]bool     // elements of sets
	ports   map[server]bool     // of a kube-proxy's sets of NodePorts, without an address
}

func (k known) have(s server) bool {
	return k.addrs[s.addr.Addr()] || k.servers[s] || k.ports[server{netip.AddrPortFrom(netip.Addr{}, s.addr.Port()), s.protocol}]
}

func frontends(link netlink.Link) (known, error) {
	out := known{addrs: map[netip.Addr]bool{}, servers: map[server]bool{}, ports: map[server]bool{}}
	addrs, err := netlink.AddrList(link, unix.AF_UNSPEC)
	if err != nil {
		return out, fmt.Errorf("addresses of %s: %w", device, err)
	}
	for _, a := range addrs {
		addr, _ := netip.AddrFromSlice(a.IP)
		out.addrs[addr.Unmap()] = true
	}
	sets, err := netlink.IpsetListAll()
	if err != nil {
		return out, fmt.Errorf("ipsets: %w", err)
	}
	for _, s := range sets {
		for _, e := range s.Entries {
			out.note(strings.TrimPrefix(strings.TrimPrefix(s.SetName, "KUBE-"), "6-"), &e)
		}
	}
	return out, nil
}

func (k known) note(set string, e *netlink.IPSetEntry) {
	protocols := map[string]model.Protocol{
		"NODE-PORT-TCP": model.TCP, "NODE-PORT-UDP": model.UDP, "NODE-PORT-SCTP-HASH": model.SCTP,
		clusterIPs: 0, externalIPs: 0, externalIPsLocal: 0, loadBalancers: 0, loadBalancersLocal: 0, nodePorts: 0, nodePortsLocal: 0,
	}
	protocol, counts := protocols[set]
	if !counts || e.Port == nil {
		return
	}
	addr, hasAddr := netip.AddrFromSlice(e.IP)
	if e.Protocol != nil {
		protocol = model.Protocol(*e.Protocol)
	}
	s := server{netip.AddrPortFrom(addr.Unmap(), *e.Port), protocol}
	if hasAddr {
		k.servers[s] = true
	} else {
		k.ports[s] = true
	}
}
