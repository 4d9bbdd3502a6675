package iptables

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// chainsAtOnce is how many chains one run of iptables-nft-restore makes: its time grows with the square of them.
const chainsAtOnce = 1500

// replacement is what makes the kernel hold what t says, each element in one run of the program. If chains of ports are too
// many for one, they come first, those that others lead to before those, and as chains of the same name may be in use,
// each is right as soon as it is there. The chains that lead to them, and the hooks, are then changed at once.
func replacement(t *tables, c *change, have *existing, atOnce int) [][]section {
	if len(c.chains) <= atOnce {
		return [][]section{rootSections(t, have, c.chains)}
	}
	var out [][]section
	for names := range slices.Chunk(byLevel(c.chains), atOnce) {
		s := section{table: nat, chains: map[string][]string{}}
		for _, name := range names {
			s.chains[name] = c.chains[name]
		}
		for _, shared := range []string{markMasquerade, markNotPod} { // endpoints' chains lead there
			if rules := t.rules(chainID{nat, shared}); len(rules) > 0 {
				s.chains[shared] = rules
			}
		}
		out = append(out, []section{s})
	}
	return append(out, rootSections(t, have, nil))
}

// rootSections have the chains that ports share and the hooks, and in table nat some more.
func rootSections(t *tables, have *existing, more map[string][]string) []section {
	var out []section
	for _, table := range allTables {
		s := section{table: table, chains: map[string][]string{}, other: have.fix(table, hooks())}
		for id := range t.shared {
			if id.table == table {
				s.chains[id.name] = t.rules(id)
			}
		}
		if table == filter && t.shared[chainID{filter, kubeletFirewall}] != nil {
			s.other = append(s.other, have.kubeletHooks()...)
		}
		if table == nat {
			maps.Copy(s.chains, more)
		}
		out = append(out, s)
	}
	return out
}

// kubeletHooks lead to the chain that is the kubelet's as well, whose rule both of us make. They are added if they are
// missing, and never removed.
func (e *existing) kubeletHooks() []string {
	var out []string
	for _, chain := range []string{"INPUT", "OUTPUT"} {
		if !e.kubelet[chain] {
			out = append(out, "-I "+chain+" -j "+kubeletFirewall)
		}
	}
	return out
}

func (p *program) chunk() int {
	if p.nft {
		return chainsAtOnce
	}
	return 1 << 30 // legacy tables are replaced as a whole, each time
}

func (p *program) sections(ctx context.Context, all ...section) error {
	var out bytes.Buffer
	for _, s := range all {
		writeSection(&out, s)
	}
	return p.restore(ctx, out.Bytes())
}

// byLevel has chains before those that lead to them.
func byLevel(chains map[string][]string) []string {
	return slices.SortedFunc(maps.Keys(chains), func(a, b string) int {
		return cmp.Or(cmp.Compare(level(b), level(a)), cmp.Compare(a, b))
	})
}

// stale are the chains that t doesn't have, those first that lead to others.
func (e *existing) stale(t *tables, c *change) []chainID {
	var out []chainID
	for id := range e.chains {
		if c.chains[id.name] == nil && t.shared[id] == nil {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b chainID) int {
		return cmp.Or(cmp.Compare(a.table, b.table), cmp.Compare(dropRank(a.name), dropRank(b.name)), cmp.Compare(a.name, b.name))
	})
	return out
}

// dropRank is that of trees, ports and what ports lead to, in this order. A root leads to branches, which it is shorter
// than.
func dropRank(chain string) int {
	switch {
	case isTree(chain):
		return len(chain)
	case isPort(chain):
		return 100 + level(chain)
	}
	return 200
}

// drop deletes chains to which no others lead than those before them.
func (p *program) drop(ctx context.Context, chains []chainID) error {
	var errs []error
	for _, table := range allTables {
		inTable := slices.DeleteFunc(slices.Clone(chains), func(id chainID) bool { return id.table != table })
		for some := range slices.Chunk(inTable, p.chunk()) {
			s := section{table: table}
			for _, id := range some {
				s.gone = append(s.gone, id.name)
			}
			errs = append(errs, p.sections(ctx, s))
		}
	}
	return errors.Join(errs...)
}

// cleanup removes all that there is of chains like ours.
func (p *program) cleanup(ctx context.Context) error {
	have, err := p.existing(ctx)
	if err != nil {
		return err
	}
	var all []section
	for _, table := range allTables {
		all = append(all, section{table: table, other: have.fix(table, nil)})
	}
	if err := p.sections(ctx, all...); err != nil {
		return err
	}
	return p.drop(ctx, have.stale(&tables{}, &change{}))
}

// cleanupTimeout is for many chains on a slow machine.
const cleanupTimeout = 5 * time.Minute

// Cleanup removes what this backend, or kube-proxy in mode iptables, made: rules of nftables and legacy ones, where there
// is a program for them. The rule against packets to the loopback address stays: it is the kubelet's, too.
func Cleanup() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	var errs []error
	for _, family := range []model.Family{model.IPv4, model.IPv6} {
		for _, nft := range []bool{true, false} {
			p := &program{family: families[family], nft: nft}
			f := *p.family
			f.program = p.variant(false)
			p.family = &f
			if _, err := exec.LookPath(f.program); err != nil || !nft && !hasLegacyTables(&f) {
				continue
			}
			if err := p.cleanup(ctx); err != nil {
				errs = append(errs, fmt.Errorf("clean up: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
