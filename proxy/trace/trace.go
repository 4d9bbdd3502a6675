// Package trace has the words in which backends tell where the kernel's rules lead a packet. Each of them can read back what
// the kernel holds, and follow a packet through it.
package trace

import (
	"net/netip"

	"github.com/orlop/orlop/proxy/model"
)

// Packet is the first one of a connection as the kernel sees it.
type Packet struct {
	From, To netip.AddrPort
	Protocol model.Protocol
	// In is the interface at which it comes in; empty for one that this node sends.
	In string
	// Local tells whether an address is one of this node's.
	Local func(netip.Addr) bool
}

// Ending is where a packet ends by the rules that the kernel has.
type Ending struct {
	// Endpoints are those that it may be sent to, in order; none if no rule gave it another address.
	Endpoints         []netip.AddrPort
	Masquerade        bool
	Dropped, Rejected bool
}
