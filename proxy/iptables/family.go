package iptables

import (
	"net/netip"

	"github.com/orlop/orlop/proxy/model"
)

// family is what differs between iptables and ip6tables.
type family struct {
	model.Family
	program string
	// unreachable is what REJECT answers.
	unreachable string
	loopback    netip.Prefix
}

var families = map[model.Family]*family{
	model.IPv4: {
		Family: model.IPv4, program: "iptables", unreachable: "icmp-port-unreachable",
		loopback: netip.MustParsePrefix("127.0.0.0/8"),
	},
	model.IPv6: {
		Family: model.IPv6, program: "ip6tables", unreachable: "icmp6-port-unreachable",
		loopback: netip.MustParsePrefix("::1/128"),
	},
}

// lastByte is an address, or a mask, that is zero but for the last byte.
func (f *family) lastByte(b byte) string {
	raw := make([]byte, f.loopback.Addr().BitLen()/8)
	raw[len(raw)-1] = b
	addr, _ := netip.AddrFromSlice(raw)
	return addr.String()
}

// host is an address as a rule has it.
func host(addr netip.Addr) string { return netip.PrefixFrom(addr, addr.BitLen()).String() }

// nodePortMatches are the ways to tell that a packet is sent to where NodePorts are served: any of them. Those on the
// loopback address work with IPv4 only, and only if the kernel was told to route it.
func (f *family) nodePortMatches(n *model.Network) []string {
	loopback := f.Family == model.IPv4 && n.LocalhostNodePorts
	if n.AllNodePorts {
		match := "-m addrtype --dst-type LOCAL"
		if !loopback {
			match = "! -d " + f.loopback.String() + " " + match
		}
		return []string{match}
	}
	var out []string
	for _, addr := range n.NodePorts {
		if model.FamilyOf(addr) == f.Family && (loopback || !addr.IsLoopback()) {
			out = append(out, "-d "+host(addr))
		}
	}
	return out
}
