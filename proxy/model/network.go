package model

import (
	"net/netip"
	"slices"
)

// Network is what the rules need to know beside the ports: the same for all Services.
type Network struct {
	// Families are those in which the node has addresses.
	Families []Family
	// Local tells packets of pods from others.
	Local LocalDetection
	// MasqueradeAll masquerades everything that is sent to a ClusterIP.
	MasqueradeAll bool
	// MasqueradeMark is the one bit of a packet's mark that says that it is to be masqueraded.
	MasqueradeMark uint32
	// NodeIPs are the node's own addresses as the API server knows them, the primary one of each family first.
	NodeIPs []netip.Addr
	// NodePorts are the addresses at which NodePorts are served. AllNodePorts is all addresses of this node instead.
	NodePorts    []netip.Addr
	AllNodePorts bool
	// LocalhostNodePorts serves NodePorts on 127.0.0.1 too, where AllNodePorts is set and the backend can.
	LocalhostNodePorts bool
	// ServiceCIDRs are where ClusterIPs come from: an address in them that no Service has leads nowhere. May be empty.
	ServiceCIDRs []netip.Prefix
	// TCPBeLiberal leaves packets alone that connection tracking takes for invalid (iptables only).
	TCPBeLiberal bool
}

// Equal tells whether packets are treated alike.
func (n Network) Equal(o Network) bool {
	return slices.Equal(n.Families, o.Families) && n.Local.equal(o.Local) &&
		n.MasqueradeAll == o.MasqueradeAll && n.MasqueradeMark == o.MasqueradeMark &&
		slices.Equal(n.NodeIPs, o.NodeIPs) && slices.Equal(n.NodePorts, o.NodePorts) && n.AllNodePorts == o.AllNodePorts &&
		n.LocalhostNodePorts == o.LocalhostNodePorts && slices.Equal(n.ServiceCIDRs, o.ServiceCIDRs) && n.TCPBeLiberal == o.TCPBeLiberal
}

// LocalDetection is how packets of pods are told from others (detectLocalMode). The zero value is that they can't be.
// Only one of the fields is set.
type LocalDetection struct {
	// Prefixes are the addresses of pods: of the cluster's or this node's.
	Prefixes []netip.Prefix
	// Bridge is the interface at which packets of pods come in.
	Bridge string
	// InterfacePrefix is how the names of such interfaces begin.
	InterfacePrefix string
}

func (l LocalDetection) equal(o LocalDetection) bool {
	return slices.Equal(l.Prefixes, o.Prefixes) && l.Bridge == o.Bridge && l.InterfacePrefix == o.InterfacePrefix
}

// Detects tells whether packets of pods can be told from others in a family.
func (l LocalDetection) Detects(family Family) bool {
	return l.Bridge != "" || l.InterfacePrefix != "" || len(l.Of(family)) > 0
}

// Of are the prefixes of a family.
func (l LocalDetection) Of(family Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(l.Prefixes), func(p netip.Prefix) bool { return FamilyOf(p.Addr()) != family })
}

// Rules is all that a backend makes the kernel do.
type Rules struct {
	Network Network
	Ports   []*Port // in no order
}
