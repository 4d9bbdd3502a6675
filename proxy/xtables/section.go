package xtables

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
)

// Section is a transaction of iptables-restore: what becomes of a table.
type Section struct {
	Table  string
	Chains map[string][]string // their rules, without "-A CHAIN"
	Gone   []string            // chains that go
	Other  []string            // lines after those of chains
}

// Write appends the words of iptables-restore.
func (s Section) Write(out *bytes.Buffer) {
	if len(s.Chains) == 0 && len(s.Gone) == 0 && len(s.Other) == 0 {
		return
	}
	out.WriteString("*" + s.Table + "\n")
	names := slices.Sorted(maps.Keys(s.Chains))
	for _, name := range slices.Concat(names, s.Gone) {
		out.WriteString(":" + name + " - [0:0]\n") // flushes the chain, too
	}
	for _, name := range names {
		for _, rule := range s.Chains[name] {
			out.WriteString("-A " + name + " " + rule + "\n")
		}
	}
	for _, line := range s.Other {
		out.WriteString(line + "\n")
	}
	for _, name := range s.Gone {
		out.WriteString("-X " + name + "\n")
	}
	out.WriteString("COMMIT\n")
}

// Set does all sections in one run of the program.
func (p *Program) Set(ctx context.Context, all ...Section) error {
	var out bytes.Buffer
	for _, s := range all {
		s.Write(&out)
	}
	return p.Restore(ctx, out.Bytes())
}

// chainsAtOnce is how many chains one run of iptables-nft-restore makes: its time grows with the square of them.
const chainsAtOnce = 1500

// ChainsAtOnce is how many chains a run of the program should make or drop at most.
func (p *Program) ChainsAtOnce() int {
	if p.NFT {
		return chainsAtOnce
	}
	return 1 << 30 // legacy tables are replaced as a whole, each time
}

// Stale are the chains there that are not to be kept, those first that lead to others.
func (e *Existing) Stale(keep func(ChainID) bool) []ChainID {
	var out []ChainID
	for id := range e.Chains {
		if !keep(id) {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b ChainID) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(dropRank(a.Name), dropRank(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// dropRank is that of trees, ports and what ports lead to, in this order. A root leads to branches, which it is shorter
// than.
func dropRank(chain string) int {
	switch {
	case isTree(chain):
		return len(chain)
	case Level(chain) > 0:
		return 100 + Level(chain)
	}
	return 200
}

// Drop deletes chains to which no others lead than those before them.
func (p *Program) Drop(ctx context.Context, chains []ChainID) error {
	var errs []error
	for _, table := range Tables {
		inTable := slices.DeleteFunc(slices.Clone(chains), func(id ChainID) bool { return id.Table != table })
		for some := range slices.Chunk(inTable, p.ChainsAtOnce()) {
			s := Section{Table: table}
			for _, id := range some {
				s.Gone = append(s.Gone, id.Name)
			}
			errs = append(errs, p.Set(ctx, s))
		}
	}
	return errors.Join(errs...)
}
