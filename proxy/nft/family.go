package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// family is what differs between the tables ip and ip6.
type family struct {
	model.Family
	table        nftables.TableFamily
	addr         nftables.SetDatatype
	words        uint32 // registers of four bytes that an address takes
	saddr, daddr uint32 // where the addresses are in the network header
	nat          uint32
	unreachable  uint8 // the ICMP code for port unreachable
	loopback     netip.Prefix
}

var families = map[model.Family]family{
	model.IPv4: {
		Family: model.IPv4, table: nftables.TableFamilyIPv4, addr: nftables.TypeIPAddr, words: 1, saddr: 12, daddr: 16,
		nat: unix.NFPROTO_IPV4, unreachable: 3, loopback: netip.MustParsePrefix("127.0.0.0/8"),
	},
	model.IPv6: {
		Family: model.IPv6, table: nftables.TableFamilyIPv6, addr: nftables.TypeIP6Addr, words: 4, saddr: 8, daddr: 24,
		nat: unix.NFPROTO_IPV6, unreachable: 4, loopback: netip.MustParsePrefix("::1/128"),
	},
}

// firstRegister is where all expressions begin: NFT_REG32_00. Registers have four bytes, an address and what belongs to
// it lie side by side.
const firstRegister = 8

// exprs is a rule, or a part of one.
type exprs []expr.Any

func join(parts ...exprs) exprs {
	var out exprs
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func (f family) loadAddr(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4 * f.words}
}

// loadPort loads protocol and destination port, which is at the same place in TCP, UDP and SCTP.
func loadPort(register uint32) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Payload{DestRegister: register + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// loadFrontend loads what a frontend's key is made of, and tells the register after it.
func (f family) loadFrontend(nodePort bool) (exprs, uint32) {
	if nodePort {
		return loadPort(firstRegister), firstRegister + 2
	}
	return join(exprs{f.loadAddr(f.daddr, firstRegister)}, loadPort(firstRegister+f.words)), firstRegister + f.words + 2
}

// inPrefix goes on if the address at offset is in the prefix, or if it is not.
func (f family) inPrefix(offset uint32, prefix netip.Prefix, op expr.CmpOp) exprs {
	size := int(4 * f.words)
	mask := make([]byte, size)
	for i := range prefix.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return exprs{
		f.loadAddr(offset, firstRegister),
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4 * f.words, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: firstRegister, Data: prefix.Masked().Addr().AsSlice()},
	}
}

// inSet goes on if the address at offset is in a set.
func (f family) inSet(offset uint32, set string) exprs {
	return exprs{f.loadAddr(offset, firstRegister), &expr.Lookup{SourceRegister: firstRegister, SetName: set}}
}

// isLocal goes on if an address is one of this node's.
func isLocal(flag expr.Fib) exprs {
	flag.Register, flag.ResultADDRTYPE = firstRegister, true
	return exprs{&flag, &expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}
}

// inInterface goes on if the packet came in at an interface whose name begins so; a whole name ends with a zero byte.
func inInterface(begin string) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(begin)},
	}
}

var isNew = exprs{
	&expr.Ct{Key: expr.CtKeySTATE, Register: firstRegister},
	&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
	&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: make([]byte, 4)},
}

// mark sets a bit of the packet's mark.
func mark(bit uint32) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bit), Xor: binaryutil.NativeEndian.PutUint32(bit)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstRegister, SourceRegister: true},
	}
}

func goTo(chain string) exprs   { return exprs{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }
func jumpTo(chain string) exprs { return exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

var drop = exprs{&expr.Verdict{Kind: expr.VerdictDrop}}

func (f family) reject() exprs {
	return exprs{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.unreachable}}
}

// byVerdictMap goes where the map says for the frontend that the packet is sent to.
func (f family) byVerdictMap(nodePort bool, name string) exprs {
	load, _ := f.loadFrontend(nodePort)
	return join(load, exprs{&expr.Lookup{SourceRegister: firstRegister, IsDestRegSet: true, SetName: name}})
}

// toEndpoint gives the packet the address and port that lie in the registers from first on.
func (f family) toEndpoint(first uint32) exprs {
	return exprs{&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.nat, RegAddrMin: first, RegProtoMin: first + f.words}}
}

// Keys and values are in network byte order, each part padded to four bytes.

func portBytes(port uint16) []byte {
	return binary.BigEndian.AppendUint16(make([]byte, 0, 4), port)[:4]
}

func frontendKey(addr netip.Addr, protocol model.Protocol, port uint16) string {
	out := make([]byte, 0, 28)
	if addr.IsValid() {
		out = append(out, addr.AsSlice()...)
	}
	out = append(out, byte(protocol), 0, 0, 0)
	return string(append(out, portBytes(port)...))
}

func endpointValue(endpoint netip.AddrPort) string {
	return string(append(endpoint.Addr().AsSlice(), portBytes(endpoint.Port())...))
}

// slotKey is in the byte order of the machine, as numgen's result is.
func slotKey(frontend string, slot int) string {
	return frontend + string(binaryutil.NativeEndian.PutUint32(uint32(slot)))
}
