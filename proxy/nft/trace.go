package nft

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/trace"
)

// Trace follows a packet through the rules. It fails for a rule that it doesn't understand: then somebody else wrote it.
func (t *Table) Trace(_ context.Context, p trace.Packet) (trace.Ending, error) {
	first, err := t.once(p, 0)
	if err != nil {
		return trace.Ending{}, err
	}
	out := first.outcome
	for choice := uint32(1); choice < first.choices; choice++ { // each value that the random number may have
		run, err := t.once(p, choice)
		if err != nil {
			return trace.Ending{}, err
		}
		if run.outcome.Dropped != out.Dropped || run.outcome.Rejected != out.Rejected {
			return trace.Ending{}, fmt.Errorf("choice %d ends otherwise than choice 0", choice)
		}
		out.Masquerade = out.Masquerade || run.outcome.Masquerade
		out.Endpoints = append(out.Endpoints, run.outcome.Endpoints...)
	}
	slices.SortFunc(out.Endpoints, netip.AddrPort.Compare)
	return out, nil
}

// run is one packet on its way.
type run struct {
	table   *Table
	packet  trace.Packet
	to      netip.AddrPort // where it goes by now
	mark    uint32
	regs    [16 * 4]byte
	choice  uint32
	choices uint32 // how many values the random number has
	outcome trace.Ending
}

// errEnd ends a packet's way.
var errEnd = errors.New("end")

// once goes through the hooks in the order in which the kernel does.
func (t *Table) once(p trace.Packet, choice uint32) (*run, error) {
	r := &run{table: t, packet: p, to: p.To, choice: choice}
	first := nftables.ChainHookPrerouting
	if p.In == "" {
		first = nftables.ChainHookOutput
	}
	err := r.hook(first)
	if err == nil { // where it goes from here depends on its new address
		for _, hook := range r.rest() {
			if err = r.hook(hook); err != nil {
				break
			}
		}
	}
	if err != nil && !errors.Is(err, errEnd) {
		return nil, err
	}
	return r, nil
}

// rest are the hooks after the first one. A packet of the node to itself goes out and comes in again.
func (r *run) rest() []*nftables.ChainHook {
	toNode, fromNode := r.packet.Local(r.to.Addr()), r.packet.In == ""
	switch {
	case toNode && fromNode:
		return []*nftables.ChainHook{nftables.ChainHookPostrouting, nftables.ChainHookInput}
	case toNode:
		return []*nftables.ChainHook{nftables.ChainHookInput}
	case fromNode:
		return []*nftables.ChainHook{nftables.ChainHookPostrouting}
	}
	return []*nftables.ChainHook{nftables.ChainHookForward, nftables.ChainHookPostrouting}
}

func (r *run) hook(hook *nftables.ChainHook) error {
	chains := slices.DeleteFunc(slices.Clone(r.table.base), func(c *nftables.Chain) bool { return *c.Hooknum != *hook })
	slices.SortFunc(chains, func(a, b *nftables.Chain) int { return cmp.Compare(*a.Priority, *b.Priority) })
	for _, c := range chains {
		if _, err := r.chain(c.Name); err != nil {
			return err
		}
	}
	return nil
}

// chain runs a chain; the verdict is that of a goto or accept in it, or that it ended.
func (r *run) chain(name string) (expr.VerdictKind, error) {
	rules, ok := r.table.chains[name]
	if !ok {
		return 0, fmt.Errorf("no chain %s", name)
	}
	for _, rule := range rules {
		verdict, err := r.rule(rule)
		if err != nil {
			return 0, fmt.Errorf("chain %s: %w", name, err)
		}
		switch verdict.Kind {
		case expr.VerdictContinue:
		case expr.VerdictJump:
			if kind, err := r.chain(verdict.Chain); err != nil || kind == expr.VerdictAccept {
				return kind, err
			}
		case expr.VerdictGoto:
			return r.chain(verdict.Chain)
		default:
			return verdict.Kind, nil
		}
	}
	return expr.VerdictReturn, nil
}

var goOn = expr.Verdict{Kind: expr.VerdictContinue}

// errBreak is that a rule does not apply.
var errBreak = errors.New("break")

func (r *run) rule(exprs []expr.Any) (expr.Verdict, error) {
	for _, e := range exprs {
		verdict, err := r.expression(e)
		switch {
		case errors.Is(err, errBreak):
			return goOn, nil
		case err != nil:
			return goOn, err
		case verdict.Kind == expr.VerdictDrop:
			r.outcome.Dropped = true
			return goOn, errEnd
		case verdict.Kind != expr.VerdictContinue:
			return verdict, nil
		}
	}
	return goOn, nil
}

// at is a register's place: one of four bytes, or one of the four of sixteen bytes that 1 to 4 stand for.
func at(register uint32) uint32 {
	if register < firstRegister {
		return (register - 1) * 16
	}
	return (register - firstRegister) * 4
}

func (r *run) set(register uint32, data []byte) {
	place := r.regs[at(register):]
	n := copy(place, data)
	clear(place[n : (n+3)/4*4])
}

func (r *run) get(register uint32, n int) []byte {
	return r.regs[at(register) : at(register)+uint32(n)]
}

func (r *run) expression(e expr.Any) (expr.Verdict, error) {
	switch e := e.(type) {
	case *expr.Counter:
	case *expr.Verdict:
		return *e, nil
	case *expr.Payload:
		return goOn, r.payload(e)
	case *expr.Meta:
		return goOn, r.meta(e)
	case *expr.Ct:
		return goOn, r.ct(e)
	case *expr.Fib:
		return goOn, r.fib(e)
	case *expr.Immediate:
		r.set(e.Register, e.Data)
	case *expr.Bitwise:
		out := make([]byte, e.Len)
		for i, b := range r.get(e.SourceRegister, int(e.Len)) {
			out[i] = b&e.Mask[i] ^ e.Xor[i]
		}
		r.set(e.DestRegister, out)
	case *expr.Cmp:
		if equal := bytes.Equal(r.get(e.Register, len(e.Data)), e.Data); equal != (e.Op == expr.CmpOpEq) {
			return goOn, errBreak
		}
	case *expr.Numgen:
		r.choices = e.Modulus
		r.set(e.Register, binary.NativeEndian.AppendUint32(nil, r.choice%e.Modulus))
	case *expr.Lookup:
		return r.lookup(e)
	case *expr.Dynset: // remembers the client: of no matter for this packet
	case *expr.NAT:
		addr, _ := netip.AddrFromSlice(r.get(e.RegAddrMin, int(4*r.table.family.words)))
		r.to = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(r.get(e.RegProtoMin, 2)))
		r.outcome.Endpoints = append(r.outcome.Endpoints, r.to)
		return expr.Verdict{Kind: expr.VerdictAccept}, nil
	case *expr.Masq:
		r.outcome.Masquerade = true
		return expr.Verdict{Kind: expr.VerdictAccept}, nil
	case *expr.Reject:
		r.outcome.Rejected = true
		return goOn, errEnd
	default:
		return goOn, fmt.Errorf("a rule has the unknown expression %T", e)
	}
	return goOn, nil
}

func (r *run) payload(e *expr.Payload) error {
	f := r.table.family
	switch {
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == f.saddr && e.Len == 4*f.words:
		r.set(e.DestRegister, r.packet.From.Addr().AsSlice())
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == f.daddr && e.Len == 4*f.words:
		r.set(e.DestRegister, r.to.Addr().AsSlice())
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2 && e.Len == 2:
		r.set(e.DestRegister, portBytes(r.to.Port()))
	default:
		return fmt.Errorf("a rule reads %d bytes at %d of header %d", e.Len, e.Offset, e.Base)
	}
	return nil
}

func (r *run) meta(e *expr.Meta) error {
	switch {
	case e.Key == expr.MetaKeyL4PROTO && !e.SourceRegister:
		r.set(e.Register, []byte{byte(r.packet.Protocol)})
	case e.Key == expr.MetaKeyMARK && e.SourceRegister:
		r.mark = binary.NativeEndian.Uint32(r.get(e.Register, 4))
	case e.Key == expr.MetaKeyMARK:
		r.set(e.Register, binary.NativeEndian.AppendUint32(nil, r.mark))
	case e.Key == expr.MetaKeyIIFNAME && !e.SourceRegister:
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, r.packet.In)
		r.set(e.Register, name)
	default:
		return fmt.Errorf("a rule uses meta key %d", e.Key)
	}
	return nil
}

func (r *run) ct(e *expr.Ct) error {
	value := uint32(0)
	switch e.Key {
	case expr.CtKeySTATE:
		value = expr.CtStateBitNEW
	case expr.CtKeySTATUS:
		if r.to != r.packet.To {
			value = dnatDone
		}
	default:
		return fmt.Errorf("a rule uses ct key %d", e.Key)
	}
	r.set(e.Register, binary.NativeEndian.AppendUint32(nil, value))
	return nil
}

func (r *run) fib(e *expr.Fib) error {
	addr := r.packet.From.Addr()
	if e.FlagDADDR {
		addr = r.to.Addr()
	}
	if !e.ResultADDRTYPE || e.FlagDADDR == e.FlagSADDR {
		return errors.New("a rule asks the routing table for something else than the type of an address")
	}
	kind := uint32(unix.RTN_UNICAST)
	if r.packet.Local(addr) {
		kind = unix.RTN_LOCAL
	}
	r.set(e.Register, binary.NativeEndian.AppendUint32(nil, kind))
	return nil
}

func (r *run) lookup(e *expr.Lookup) (expr.Verdict, error) {
	set, ok := r.table.sets[e.SetName]
	if !ok {
		return goOn, fmt.Errorf("no set %s", e.SetName)
	}
	element, found := r.find(set, e.SourceRegister)
	switch {
	case found == e.Invert:
		return goOn, errBreak
	case element.VerdictData != nil:
		return *element.VerdictData, nil
	case e.IsDestRegSet:
		r.set(e.DestRegister, element.Val)
	}
	return goOn, nil
}

// find uses that all keys of a set are of the same length.
func (r *run) find(set map[string]nftables.SetElement, register uint32) (nftables.SetElement, bool) {
	for key := range set {
		e, ok := set[string(r.get(register, len(key)))]
		return e, ok
	}
	return nftables.SetElement{}, false
}
