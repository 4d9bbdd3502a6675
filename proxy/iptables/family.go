package iptables

import (
	"fmt"
	"net/netip"
	"regexp"

	"github.com/orlop/orlop/proxy/model"
)

// family is what differs between iptables and ip6tables.
type family struct {
	model.Family
	program string
	// unreachable is what REJECT answers.
	unreachable string
	loopback    netip.Prefix
	// clientMask is how much of an address tells clients apart: all.
	clientMask string
}

var families = map[model.Family]*family{
	model.IPv4: {
		Family: model.IPv4, program: "iptables", unreachable: "icmp-port-unreachable",
		loopback: netip.MustParsePrefix("127.0.0.0/8"), clientMask: "255.255.255.255",
	},
	model.IPv6: {
		Family: model.IPv6, program: "ip6tables", unreachable: "icmp6-port-unreachable",
		loopback: netip.MustParsePrefix("::1/128"), clientMask: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
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

// interfaceName is what may be in a rule's text; the kernel allows more, such as quotes.
var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.:@+-]{1,15}$`)

// checkNetwork tells what can't be said in rules.
func checkNetwork(n *model.Network) error {
	for field, name := range map[string]string{"bridge interface": n.Local.Bridge, "interface name prefix": withPlus(n.Local.InterfacePrefix)} {
		if name != "" && !interfaceName.MatchString(name) {
			return fmt.Errorf("%s: %q is no name of an interface; give one of up to 15 letters, digits and _.:@-", field, name)
		}
	}
	if n.MasqueradeMark == 0 || n.MasqueradeMark&(n.MasqueradeMark-1) != 0 {
		return fmt.Errorf("masquerade mark %#x: it must be one bit", n.MasqueradeMark)
	}
	for _, f := range n.Families {
		if families[f] == nil {
			return fmt.Errorf("family %s is not known", f)
		}
	}
	return nil
}

// withPlus is how a rule says that a name begins so.
func withPlus(prefix string) string {
	if prefix == "" {
		return ""
	}
	return prefix + "+"
}

// podMatches are the ways to tell that a packet is a pod's: any of them.
func (f *family) podMatches(local model.LocalDetection) []string {
	switch {
	case local.Bridge != "":
		return []string{"-i " + local.Bridge}
	case local.InterfacePrefix != "":
		return []string{"-i " + withPlus(local.InterfacePrefix)}
	}
	var out []string
	for _, prefix := range local.Of(f.Family) {
		out = append(out, "-s "+prefix.Masked().String())
	}
	return out
}

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
