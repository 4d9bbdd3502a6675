package xtables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/trace"
)

// Rules are what the kernel holds in one family. A mode that uses more of the kernel than rules says what that does.
type Rules struct {
	// List tells the rules of a chain, without "-A CHAIN".
	List func(ctx context.Context, table, chain string) ([]string, error)
	// InSet tells whether a set has what directions, as "dst,dst,src", take from a packet; nil if no rule asks for sets.
	InSet func(set, directions string, p trace.Packet) (bool, error)
	// Serve is where a packet goes that has come to the node itself, past table filter; nil if nobody takes it there.
	Serve func(p trace.Packet) ([]netip.AddrPort, error)
	// Known are the clients that endpoints' chains remember, by the name of their list.
	Known map[string]bool

	chains map[ChainID][][]string // rules by words, as far as packets met them
}

// Read begins to read what the kernel holds in a family. It is for people and tests: nothing that keeps rules up to date
// ever lists them.
func Read(ctx context.Context, f model.Family) (*Rules, error) {
	listing, err := List(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("iptables: %w", err)
	}
	return &Rules{List: listing.Rules}, nil
}

func (r *Rules) chain(ctx context.Context, table, name string) ([][]string, error) {
	id := ChainID{Table: table, Name: name}
	if rules, known := r.chains[id]; known {
		return rules, nil
	}
	texts, err := r.List(ctx, table, name)
	if err != nil {
		return nil, err
	}
	rules := [][]string{}
	for _, text := range texts {
		rules = append(rules, SplitRule(text))
	}
	if r.chains == nil {
		r.chains = map[ChainID][][]string{}
	}
	r.chains[id] = rules
	return rules, nil
}

// Trace follows a packet of a client that is not known yet through the rules, once for each way that chance may take. It
// fails for an unknown form of a rule, which somebody else wrote; if chance decides more than the endpoint; and if it prefers
// one.
func (r *Rules) Trace(ctx context.Context, p trace.Packet) (trace.Ending, error) {
	var out trace.Ending
	weights := map[netip.AddrPort]float64{}
	for decisions := []bool(nil); ; {
		w := &way{rules: r, packet: p, now: p.To, weight: 1, decisions: decisions}
		if err := w.hooks(ctx); err != nil && !errors.Is(err, errEnd) {
			return out, err
		}
		for _, e := range w.ends() {
			weights[e] += w.weight / float64(len(w.ends()))
		}
		one := trace.Ending{Masquerade: w.masquerade, Dropped: w.dropped, Rejected: w.rejected}
		if decisions == nil {
			out = one
		} else if fmt.Sprint(one) != fmt.Sprint(out) {
			return out, fmt.Errorf("chance decides between %+v and %+v", out, one)
		}
		if decisions = nextDecisions(w.decisions); decisions == nil {
			break
		}
	}
	for endpoint, weight := range weights {
		if math.Abs(weight-1/float64(len(weights))) > 1e-6 {
			return out, fmt.Errorf("%s is taken with a probability of %f, of %d", endpoint, weight, len(weights))
		}
	}
	out.Endpoints = slices.SortedFunc(maps.Keys(weights), netip.AddrPort.Compare)
	return out, nil
}

// ends are where the way led, if anything did.
func (w *way) ends() []netip.AddrPort {
	switch {
	case len(w.served) > 0:
		return w.served
	case w.now != w.packet.To:
		return []netip.AddrPort{w.now}
	}
	return nil
}

// nextDecisions are those that differ in the last one that can be another, or nil after the last way.
func nextDecisions(decisions []bool) []bool {
	at := len(decisions) - 1
	for at >= 0 && !decisions[at] {
		at--
	}
	if at < 0 {
		return nil
	}
	return append(slices.Clone(decisions[:at]), false)
}

// way is one packet on its way.
type way struct {
	rules     *Rules
	packet    trace.Packet
	now       netip.AddrPort
	served    []netip.AddrPort // what Rules.Serve told
	mark      uint64
	decisions []bool // of rules that apply by chance
	at        int
	weight    float64

	masquerade, dropped, rejected bool
}

var errEnd = errors.New("end")

// hooks are the kernel's chains in the order in which it goes through them; where a packet goes from here depends on the
// address that table nat gave it.
func (w *way) hooks(ctx context.Context) error {
	fromNode := w.packet.In == ""
	first := "PREROUTING"
	if fromNode {
		first = "OUTPUT"
	}
	if err := w.pass(ctx, ChainID{Mangle, first}, ChainID{NAT, first}); err != nil {
		return err
	}
	toNode := w.packet.Local(w.now.Addr())
	var rest []ChainID
	if fromNode {
		rest = append(rest, ChainID{Filter, "OUTPUT"})
	} else if !toNode {
		rest = append(rest, ChainID{Filter, "FORWARD"})
	}
	if toNode {
		rest = append(rest, ChainID{Filter, "INPUT"})
	}
	if err := w.pass(ctx, rest...); err != nil {
		return err
	}
	if toNode && w.rules.Serve != nil {
		var err error
		if w.served, err = w.rules.Serve(w.packet); err != nil {
			return err
		}
	}
	if fromNode || !toNode || len(w.served) > 0 {
		return w.pass(ctx, ChainID{NAT, "POSTROUTING"})
	}
	return nil
}

func (w *way) pass(ctx context.Context, chains ...ChainID) error {
	for _, id := range chains {
		if err := w.hook(ctx, id.Table, id.Name); err != nil {
			return err
		}
	}
	return nil
}

func (w *way) hook(ctx context.Context, table, chain string) error {
	_, err := w.chain(ctx, table, chain)
	if err != nil && !errors.Is(err, errEnd) {
		return fmt.Errorf("table %s: %w", table, err)
	}
	return err
}

// chain is true if the packet is accepted, which ends the kernel's chain.
func (w *way) chain(ctx context.Context, table, name string) (bool, error) {
	rules, err := w.rules.chain(ctx, table, name)
	if err != nil {
		return false, err
	}
	for _, rule := range rules {
		matches, target, err := w.matches(rule)
		if err != nil {
			return false, fmt.Errorf("chain %s: %s: %w", name, strings.Join(rule, " "), err)
		}
		if !matches {
			continue
		}
		accepted, returned, err := w.target(ctx, table, target)
		if errors.Is(err, errEnd) {
			return false, err
		}
		if err != nil {
			return false, fmt.Errorf("chain %s: %s: %w", name, strings.Join(rule, " "), err)
		}
		if accepted || returned {
			return accepted, nil
		}
	}
	return false, nil
}

// SplitRule splits at spaces that are not in quotes.
func SplitRule(rule string) []string {
	var out []string
	for i, part := range strings.Split(rule, `"`) {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

// Verdicts are the targets that are no chains.
var Verdicts = []string{"RETURN", "ACCEPT", "DROP", "REJECT", "DNAT", "MARK", "MASQUERADE"}

// target does what a rule that applies says.
func (w *way) target(ctx context.Context, table string, words []string) (accepted, returned bool, err error) {
	switch text := strings.Join(words, " "); {
	case text == "RETURN":
		return false, true, nil
	case text == "ACCEPT":
		return true, false, nil
	case text == "DROP":
		w.dropped = true
		return false, false, errEnd
	case text == "REJECT --reject-with icmp-port-unreachable", text == "REJECT --reject-with icmp6-port-unreachable":
		w.rejected = true
		return false, false, errEnd
	case text == "MASQUERADE --random-fully":
		w.masquerade = true
		return true, false, nil
	case len(words) == 3 && words[0] == "DNAT" && words[1] == "--to-destination":
		w.now, err = netip.ParseAddrPort(words[2])
		return true, false, err
	case len(words) == 3 && words[0] == "MARK":
		return false, false, w.setMark(words[1], words[2])
	case len(words) == 1 && !slices.Contains(Verdicts, words[0]):
		accepted, err = w.chain(ctx, table, words[0])
		return accepted, false, err
	}
	return false, false, fmt.Errorf("target %q is not understood", words)
}

// setMark reads the forms in which rules are told, and that in which the kernel's are listed.
func (w *way) setMark(option, text string) error {
	value, mask, masked := strings.Cut(text, "/")
	bits, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return err
	}
	switch {
	case option == "--or-mark" && !masked:
		w.mark |= bits
	case option == "--xor-mark" && !masked:
		w.mark ^= bits
	case option == "--set-xmark" && masked:
		cleared, err := strconv.ParseUint(mask, 0, 32)
		if err != nil {
			return err
		}
		w.mark = w.mark&^cleared ^ bits
	default:
		return fmt.Errorf("%s %s is not understood", option, text)
	}
	return nil
}
