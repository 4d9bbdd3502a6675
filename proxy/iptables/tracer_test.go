package iptables

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/xtables"
)

// ruleset is what a kernel would hold after it was told texts for iptables-restore: table, chain, rules.
type ruleset map[string]map[string][]string

func newRuleset() ruleset {
	out := ruleset{xtables.Mangle: {}}
	for table, chains := range xtables.Builtin {
		out[table] = map[string][]string{}
		for _, chain := range chains {
			out[table][chain] = nil
		}
	}
	return out
}

// restore does what iptables-restore --noflush does, and fails where it does.
func (r ruleset) restore(text string) error {
	table := ""
	for n, line := range strings.Split(strings.TrimSpace(text), "\n") {
		var err error
		word, rest, _ := strings.Cut(line, " ")
		chain, rule, _ := strings.Cut(rest, " ")
		_, known := r[table][chain]
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			r[table][word[1:]] = nil
		case line == "COMMIT":
			err = r.linked(table)
		case !known:
			err = errors.New("no such chain")
		case word == "-A":
			r[table][chain] = append(r[table][chain], rule)
		case word == "-I":
			r[table][chain] = slices.Insert(r[table][chain], 0, rule)
		case word == "-D":
			at := slices.Index(r[table][chain], rule)
			if at < 0 {
				return fmt.Errorf("line %d: no such rule: %s", n+1, line)
			}
			r[table][chain] = slices.Delete(r[table][chain], at, at+1)
		case word == "-X" && len(r[table][chain]) == 0:
			delete(r[table], chain)
		default:
			err = errors.New("not understood")
		}
		if err != nil {
			return fmt.Errorf("line %d: %s: %w", n+1, line, err)
		}
	}
	return nil
}

// verdicts end a packet's way through a chain.
var verdicts = []string{"RETURN", "ACCEPT", "DROP", "REJECT", "DNAT", "MARK", "MASQUERADE"}

// linked fails if a rule leads to a chain that is not there.
func (r ruleset) linked(table string) error {
	for chain, rules := range r[table] {
		for _, rule := range rules {
			words := splitRule(rule)
			target := words[slices.Index(words, "-j")+1] // the first word where there is none, which is no chain
			if _, known := r[table][target]; !known && !slices.Contains(verdicts, target) {
				return fmt.Errorf("chain %s leads to %q, which is not there", chain, target)
			}
		}
	}
	return nil
}

// packet is the first one of a connection.
type packet struct {
	from     model.Source
	source   netip.Addr
	to       netip.AddrPort
	protocol model.Protocol
	in       string // the interface; none for what the node sends
	local    func(netip.Addr) bool
	// known are the clients that endpoints' chains remember.
	known map[string]bool
}

// outcome is where a packet ends.
type outcome struct {
	Endpoints         []netip.AddrPort
	Masquerade        bool
	Dropped, Rejected bool
}

// trace follows a packet through the rules, once for each way that chance may take. It fails for an unknown form of a rule,
// if chance decides more than the endpoint, and if it prefers one.
func (r ruleset) trace(p packet) (outcome, error) {
	var out outcome
	weights := map[netip.AddrPort]float64{}
	for decisions := []bool(nil); ; {
		w := &way{rules: r, packet: p, now: p.to, weight: 1, decisions: decisions}
		if err := w.hooks(); err != nil && !errors.Is(err, errEnd) {
			return out, err
		}
		if w.now != p.to {
			weights[w.now] += w.weight
		}
		one := outcome{Masquerade: w.masquerade, Dropped: w.dropped, Rejected: w.rejected}
		if decisions == nil {
			out = one
		} else if fmt.Sprint(one) != fmt.Sprint(out) {
			return out, fmt.Errorf("chance decides between %+v and %+v", out, one)
		}
		// The next way is the one that differs in the last decision that can be another.
		decisions = w.decisions
		for len(decisions) > 0 && !decisions[len(decisions)-1] {
			decisions = decisions[:len(decisions)-1]
		}
		if len(decisions) == 0 {
			break
		}
		decisions = append(slices.Clone(decisions[:len(decisions)-1]), false)
	}
	for endpoint, weight := range weights {
		if math.Abs(weight-1/float64(len(weights))) > 1e-6 {
			return out, fmt.Errorf("%s is taken with a probability of %f, of %d", endpoint, weight, len(weights))
		}
	}
	out.Endpoints = slices.SortedFunc(maps.Keys(weights), netip.AddrPort.Compare)
	return out, nil
}

// way is one packet on its way.
type way struct {
	rules     ruleset
	packet    packet
	now       netip.AddrPort
	mark      uint64
	decisions []bool // of rules that apply by chance
	at        int
	weight    float64

	masquerade, dropped, rejected bool
}

var errEnd = errors.New("end")

func (w *way) hooks() error {
	fromNode := w.packet.in == ""
	first := []string{"PREROUTING"}
	if fromNode {
		first = []string{"OUTPUT"}
	}
	if err := w.tables(xtables.NAT, first); err != nil {
		return err
	}
	toNode := w.packet.local(w.now.Addr())
	switch {
	case fromNode && toNode:
		return errors.Join(w.tables(xtables.Filter, []string{"OUTPUT", "INPUT"}), w.tables(xtables.NAT, []string{"POSTROUTING"}))
	case toNode:
		return w.tables(xtables.Filter, []string{"INPUT"})
	case fromNode:
		return errors.Join(w.tables(xtables.Filter, []string{"OUTPUT"}), w.tables(xtables.NAT, []string{"POSTROUTING"}))
	}
	if err := w.tables(xtables.Filter, []string{"FORWARD"}); err != nil {
		return err
	}
	return w.tables(xtables.NAT, []string{"POSTROUTING"})
}

func (w *way) tables(table string, chains []string) error {
	if w.dropped || w.rejected {
		return errEnd
	}
	for _, chain := range chains {
		if _, err := w.chain(table, chain); err != nil {
			return fmt.Errorf("table %s: %w", table, err)
		}
	}
	return nil
}

// chain is true if the packet is accepted, which ends the kernel's chain.
func (w *way) chain(table, name string) (bool, error) {
	for _, rule := range w.rules[table][name] {
		words := splitRule(rule)
		matches, rest, err := w.matches(words)
		if err != nil {
			return false, fmt.Errorf("chain %s: %s: %w", name, rule, err)
		}
		if !matches {
			continue
		}
		accepted, returned, err := w.target(table, rest)
		if err != nil {
			return false, fmt.Errorf("chain %s: %s: %w", name, rule, err)
		}
		if accepted || returned {
			return accepted, nil
		}
	}
	return false, nil
}

// splitRule splits at spaces that are not in quotes.
func splitRule(rule string) []string {
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

func (w *way) target(table string, words []string) (accepted, returned bool, err error) {
	number := func() uint64 {
		n, bad := strconv.ParseUint(words[2], 0, 32)
		err = errors.Join(err, bad)
		return n
	}
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
	case len(words) == 3 && words[0] == "MARK" && words[1] == "--or-mark":
		w.mark |= number()
		return false, false, err
	case len(words) == 3 && words[0] == "MARK" && words[1] == "--xor-mark":
		w.mark ^= number()
		return false, false, err
	case len(words) == 1 && !slices.Contains(verdicts, words[0]):
		accepted, err = w.chain(table, words[0])
		return accepted, false, err
	}
	return false, false, fmt.Errorf("target %q is not understood", words)
}
