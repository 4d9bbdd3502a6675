package iptables

import (
	"context"
	"slices"
	"strings"
)

// existing is what there is in the kernel of chains like ours, and of rules that lead from the kernel's chains to them.
type existing struct {
	chains map[chainID]bool
	hooks  []hook
	// kubelet are the chains of table filter that lead to the chain that the kubelet makes, too.
	kubelet map[string]bool
}

// builtin are the kernel's chains in which kube-proxy or we have rules.
var builtin = map[string][]string{filter: {"INPUT", "FORWARD", "OUTPUT"}, nat: {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}, mangle: nil}

// allTables is in the order in which they are changed.
var allTables = []string{mangle, filter, nat}

// existing looks at all tables. Programs for nftables take seconds for a list of many chains, so that only those chains
// are listed that matter, and the names of the others are asked of the kernel.
func (p *program) existing(ctx context.Context) (*existing, error) {
	out := &existing{chains: map[chainID]bool{}, kubelet: map[string]bool{}}
	if p.nft {
		names, err := chainNames(p.family.Family)
		if err != nil {
			return nil, err
		}
		for _, id := range names {
			out.chains[id] = isOurs(id.name)
		}
	}
	for _, table := range allTables {
		chains := builtin[table]
		if !p.nft {
			chains = []string{""}
		}
		for _, chain := range chains {
			if p.nft && !hasChain(out.chains, table, chain) {
				continue // asking for it would make it
			}
			lines, err := p.list(ctx, table, chain)
			if err != nil {
				return nil, err
			}
			out.read(table, lines)
		}
	}
	for id, ours := range out.chains {
		if !ours {
			delete(out.chains, id)
		}
	}
	return out, nil
}

func hasChain(chains map[chainID]bool, table, name string) bool {
	_, ok := chains[chainID{table, name}]
	return ok
}

// read takes what matters from lines as "-N KUBE-SERVICES" and "-A PREROUTING … -j KUBE-SERVICES".
func (e *existing) read(table string, lines []string) {
	for _, line := range lines {
		fields := strings.Fields(line)
		switch {
		case table == filter && len(fields) == 4 && fields[0] == "-A" && fields[2] == "-j" && fields[3] == kubeletFirewall:
			e.kubelet[fields[1]] = true
		case len(fields) == 2 && fields[0] == "-N":
			e.chains[chainID{table, fields[1]}] = isOurs(fields[1])
		case len(fields) > 3 && fields[0] == "-A" && slices.Contains(builtin[table], fields[1]) && isOurs(fields[len(fields)-1]):
			e.hooks = append(e.hooks, hook{table, fields[1], strings.TrimPrefix(line, "-A "+fields[1]+" ")})
		}
	}
}

// fix is the lines that leave a table with the hooks that are wanted, in their order, and no other of ours.
func (e *existing) fix(table string, want []hook) []string {
	inTable := func(h hook) bool { return h.table != table }
	want = slices.DeleteFunc(slices.Clone(want), inTable)
	have := slices.DeleteFunc(slices.Clone(e.hooks), inTable)
	var out []string
	for _, chain := range builtin[table] {
		other := func(h hook) bool { return h.chain != chain }
		wanted, had := slices.DeleteFunc(slices.Clone(want), other), slices.DeleteFunc(slices.Clone(have), other)
		slices.Reverse(wanted) // as they stand in the chain
		if slices.Equal(wanted, had) {
			continue
		}
		for _, h := range had {
			out = append(out, "-D "+chain+" "+h.rule)
		}
		for _, h := range slices.Backward(wanted) {
			out = append(out, "-I "+chain+" "+h.rule)
		}
	}
	return out
}
