package xtables

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/orlop/orlop/proxy/model"
)

// Listing is what the kernel holds, asked for chain by chain: a program for nftables takes seconds for all of many chains. It
// is for people and tests; nothing that keeps rules up to date lists them.
type Listing struct {
	program *Program
	names   map[ChainID]bool // all that there are; nil where chains are known once their table is listed
	chains  map[ChainID][]string
	listed  map[string]bool // tables
}

// List begins to read what the kernel has of a family, made by the program that the node has.
func List(ctx context.Context, f model.Family) (*Listing, error) {
	p, err := find(ctx, f)
	if err != nil {
		return nil, err
	}
	l := &Listing{program: p, chains: map[ChainID][]string{}, listed: map[string]bool{}}
	if !p.NFT {
		return l, nil
	}
	l.names = map[ChainID]bool{}
	names, err := chainNames(f)
	for _, id := range names {
		l.names[id] = true
	}
	return l, err
}

// manyChains is how many may be asked for one by one before a list of the whole table is cheaper.
const manyChains = 100

// Rules are those of a chain, without "-A CHAIN". Of the kernel's own chains they are those that lead to ours: what other
// programs do there is theirs.
func (l *Listing) Rules(ctx context.Context, table, chain string) ([]string, error) {
	id := ChainID{table, chain}
	if rules, known := l.chains[id]; known {
		return rules, nil
	}
	builtin := slices.Contains(Builtin[table], chain)
	switch {
	case l.listed[table], l.program.NFT && !l.names[id]: // asking for a chain of the kernel's would make it
		if builtin {
			return nil, nil
		}
		return nil, fmt.Errorf("table %s has no chain %s", table, chain)
	case !l.program.NFT || len(l.chains) >= manyChains:
		l.listed[table], chain = true, ""
		maps.DeleteFunc(l.chains, func(id ChainID, _ []string) bool { return id.Table == table })
	}
	lines, err := l.program.List(ctx, table, chain)
	if err != nil {
		return nil, err
	}
	l.read(table, lines)
	if l.chains[id] == nil && builtin {
		l.chains[id] = []string{}
	}
	return l.Rules(ctx, table, id.Name)
}

func (l *Listing) read(table string, lines []string) {
	for _, line := range lines {
		word, rest, _ := strings.Cut(line, " ")
		name, rule, _ := strings.Cut(rest, " ")
		id := ChainID{table, name}
		target := rule[strings.LastIndexByte(rule, ' ')+1:]
		switch {
		case word == "-N":
			l.chains[id] = []string{}
		case word != "-A":
		case !slices.Contains(Builtin[table], name), IsOurs(target), target == KubeletFirewall:
			l.chains[id] = append(l.chains[id], rule)
		}
	}
}
