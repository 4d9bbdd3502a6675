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
			prefix, err := parseCIDR(cidr)
			if err != nil {
				return fmt.Errorf("clusterCIDR: %w", err)
			}
			out.Local.Prefixes = append(out.Local.Prefixes, prefix)
		}
	}
	return nil
}

func (c *Config) clusterCIDRs() []string {
	if c.ClusterCIDR == "" {
		return nil
	}
	return strings.Split(c.ClusterCIDR, ",")
}

// The words that stand for addresses in nodePortAddresses.
const (
	primary   = "primary"   // the node's own, as the API server knows them
	localhost = "localhost" // loopback
	everyone  = "all"
)

var (
	loopbacks  = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	everywhere = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
)

// nodePorts says at which addresses NodePorts are served, sorted. A family of which no range is given is served at all of
// its addresses, as with kube-proxy.
func (c *Config) nodePorts(out *model.Network, f Facts) {
	ranges := c.nodePortRanges(f)
	all := 0
	for _, family := range f.Families {
		some := slices.DeleteFunc(slices.Clone(ranges), func(r netip.Prefix) bool { return model.FamilyOf(r.Addr()) != family })
		if len(some) == 0 || slices.ContainsFunc(some, func(r netip.Prefix) bool { return r.Bits() == 0 }) {
			some = everywhere
			all++
		}
		for _, addr := range slices.Concat(f.Interfaces, f.NodeIPs) {
			if model.FamilyOf(addr) == family && slices.ContainsFunc(some, func(r netip.Prefix) bool { return r.Contains(addr) }) {
				out.NodePorts = append(out.NodePorts, addr)
			}
		}
	}
	if all == len(f.Families) {
		out.AllNodePorts, out.NodePorts = true, nil
	}
	slices.SortFunc(out.NodePorts, netip.Addr.Compare)
	out.NodePorts = slices.Compact(out.NodePorts)
}

// nodePortRanges has the words replaced by what they stand for. A family in which the node has no address of its own has
// loopback for one.
func (c *Config) nodePortRanges(f Facts) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range c.NodePortAddresses {
		switch text {
		case localhost:
			out = append(out, loopbacks...)
		case everyone:
			out = append(out, everywhere...)
		case primary:
			for _, loopback := range loopbacks {
				ofFamily := func(a netip.Addr) bool { return a.BitLen() == loopback.Addr().BitLen() }
				if at := slices.IndexFunc(f.NodeIPs, ofFamily); at >= 0 {
					loopback = netip.PrefixFrom(f.NodeIPs[at], f.NodeIPs[at].BitLen())
				}
				out = append(out, loopback)
			}
		default:
			if prefix, err := parseCIDR(text); err == nil { // Validate has told of others
				out = append(out, prefix)
			}
		}
	}
	return out
}

// NodePortsMove tells whether NodePorts are served at other addresses when an interface gets or loses one.
func (c *Config) NodePortsMove() bool {
	byRange := func(text string) bool { return text != primary && text != localhost && text != everyone }
	return slices.ContainsFunc(c.NodePortAddresses, byRange)
}

// parseCIDR is of a range that a person wrote.
func parseCIDR(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
	return prefix.Masked(), err
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
