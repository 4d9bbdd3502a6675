package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/orlop/orlop/proxy/model"
)

// Facts are what of the machine and of the cluster decides how the rules are.
type Facts struct {
	// NodeIPs are the node's own addresses, the primary one first.
	NodeIPs []netip.Addr
	// PodCIDRs are the ranges of the node's pods.
	PodCIDRs     []netip.Prefix
	ServiceCIDRs []netip.Prefix
	// Families are those that the kernel has.
	Families []model.Family
	// Interfaces are the addresses of all interfaces, loopback's too.
	Interfaces []netip.Addr
}

// Network is what the rules need to know beside Services.
func (c *Config) Network(f Facts) (model.Network, error) {
	out := model.Network{
		Families: f.Families, NodeIPs: f.NodeIPs, ServiceCIDRs: f.ServiceCIDRs, TCPBeLiberal: c.Conntrack.TCPBeLiberal,
		MasqueradeAll: c.NFTables.MasqueradeAll, MasqueradeMark: 1 << *c.NFTables.MasqueradeBit,
	}
	if c.Mode != NFTables { // IPVS uses the settings of iptables, as in kube-proxy
		out.MasqueradeAll, out.MasqueradeMark = c.IPTables.MasqueradeAll, 1<<*c.IPTables.MasqueradeBit
		out.LocalhostNodePorts = c.Mode == IPTables && *c.IPTables.LocalhostNodePorts
	}
	c.nodePorts(&out, f)
	return out, c.detectLocal(&out, f)
}

func (c *Config) detectLocal(out *model.Network, f Facts) error {
	switch c.DetectLocalMode {
	case BridgeInterface:
		out.Local.Bridge = c.DetectLocal.BridgeInterface
	case InterfaceNamePrefix:
		out.Local.InterfacePrefix = c.DetectLocal.InterfaceNamePrefix
	case NodeCIDR:
		out.Local.Prefixes = f.PodCIDRs
	default:
		for _, cidr := range c.clusterCIDRs() {
			prefix, err := netip.ParsePrefix(strings.TrimSpace(cidr))
			if err != nil {
				return fmt.Errorf("clusterCIDR: %w", err)
			}
			out.Local.Prefixes = append(out.Local.Prefixes, prefix.Masked())
		}
	}
	return nil
}

// nodePorts says at which addresses NodePorts are served. A family of which no range is given is served at all of its
// addresses, as with kube-proxy.
func (c *Config) nodePorts(out *model.Network, f Facts) {
	if slices.Equal(c.NodePortAddresses, []string{primary}) {
		out.NodePorts = f.NodeIPs
		return
	}
	everywhere := 0
	for _, family := range f.Families {
		ranges := c.nodePortRanges(family)
		if len(ranges) == 0 {
			everywhere++
		}
		for _, addr := range f.Interfaces {
			inRange := func(r netip.Prefix) bool { return r.Contains(addr) }
			if model.FamilyOf(addr) == family && (len(ranges) == 0 || slices.ContainsFunc(ranges, inRange)) {
				out.NodePorts = append(out.NodePorts, addr)
			}
		}
	}
	if everywhere == len(f.Families) {
		out.AllNodePorts, out.NodePorts = true, nil
	}
}

// nodePortRanges is empty for all addresses.
func (c *Config) nodePortRanges(family model.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, cidr := range c.NodePortAddresses {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(cidr))
		if err != nil || model.FamilyOf(prefix.Addr()) != family {
			continue // Validate has told of the former
		}
		if prefix.Bits() == 0 {
			return nil
		}
		out = append(out, prefix)
	}
	return out
}

// Families are those that the kernel has: IPv6 may be switched off.
func Families() []model.Family {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return []model.Family{model.IPv4}
	}
	return []model.Family{model.IPv4, model.IPv6}
}

// InterfaceAddrs are the addresses of all interfaces but link-local ones.
func InterfaceAddrs() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of interfaces: %w", err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && !addr.IsLinkLocalUnicast() {
				out = append(out, addr.Unmap())
			}
		}
	}
	return out, nil
}
