package xtables

import (
	"context"
	"slices"
	"strings"
)

// ChainID names a chain.
type ChainID struct{ Table, Name string }

// Hook is a rule of ours in a chain of the kernel's, which comes before all others there.
type Hook struct{ Table, Chain, Rule string }

// Existing is what there is in the kernel of chains like ours, and of rules that lead from the kernel's chains to them.
type Existing struct {
	Chains map[ChainID]bool
	Hooks  []Hook
	// Kubelet are the chains of table filter that lead to the chain that the kubelet makes, too.
	Kubelet map[string]bool
}

// Existing looks at all tables. Programs for nftables take seconds for a list of many chains, so that only those chains
// are listed that matter, and the names of the others are asked of the kernel.
func (p *Program) Existing(ctx context.Context) (*Existing, error) {
	out := &Existing{Chains: map[ChainID]bool{}, Kubelet: map[string]bool{}}
	if p.NFT {
		names, err := chainNames(p.Family)
		if err != nil {
			return nil, err
		}
		for _, id := range names {
			out.Chains[id] = IsOurs(id.Name)
		}
	}
	for _, table := range Tables {
		chains := Builtin[table]
		if !p.NFT {
			chains = []string{""}
		}
		for _, chain := range chains {
			if p.NFT && !hasChain(out.Chains, table, chain) {
				continue // asking for it would make it
			}
			lines, err := p.List(ctx, table, chain)
			if err != nil {
				return nil, err
			}
			out.read(table, lines)
		}
	}
	for id, ours := range out.Chains {
		if !ours {
			delete(out.Chains, id)
		}
	}
	return out, nil
}

func hasChain(chains map[ChainID]bool, table, name string) bool {
	_, ok := chains[ChainID{table, name}]
	return ok
}

// read takes what matters from lines as "-N KUBE-SERVICES" and "-A PREROUTING … -j KUBE-SERVICES".
func (e *Existing) read(table string, lines []string) {
	for _, line := range lines {
		fields := strings.Fields(line)
		switch {
		case table == Filter && len(fields) == 4 && fields[0] == "-A" && fields[2] == "-j" && fields[3] == KubeletFirewall:
			e.Kubelet[fields[1]] = true
		case len(fields) == 2 && fields[0] == "-N":
			e.Chains[ChainID{table, fields[1]}] = IsOurs(fields[1])
		case len(fields) > 3 && fields[0] == "-A" && slices.Contains(Builtin[table], fields[1]) && IsOurs(fields[len(fields)-1]):
			e.Hooks = append(e.Hooks, Hook{table, fields[1], strings.TrimPrefix(line, "-A "+fields[1]+" ")})
		}
	}
}

// Fix is the lines that leave a table with the hooks that are wanted, in their order, and no other of ours.
func (e *Existing) Fix(table string, want []Hook) []string {
	inTable := func(h Hook) bool { return h.Table != table }
	want = slices.DeleteFunc(slices.Clone(want), inTable)
	have := slices.DeleteFunc(slices.Clone(e.Hooks), inTable)
	var out []string
	for _, chain := range Builtin[table] {
		other := func(h Hook) bool { return h.Chain != chain }
		wanted, had := slices.DeleteFunc(slices.Clone(want), other), slices.DeleteFunc(slices.Clone(have), other)
		slices.Reverse(wanted) // as they stand in the chain
		if slices.Equal(wanted, had) {
			continue
		}
		for _, h := range had {
			out = append(out, "-D "+chain+" "+h.Rule)
		}
		for _, h := range slices.Backward(wanted) {
			out = append(out, "-I "+chain+" "+h.Rule)
		}
	}
	return out
}
