package iptables

import (
	"cmp"
	"maps"
	"slices"

	"github.com/orlop/orlop/proxy/xtables"
)

// replacement is what makes the kernel hold what t says, each element in one run of the program. If chains of ports are too
// many for one, they come first, those that others lead to before those, and as chains of the same name may be in use,
// each is right as soon as it is there. The chains that lead to them, and the hooks, are then changed at once.
func replacement(t *tables, c *change, have *xtables.Existing, atOnce int) [][]xtables.Section {
	if len(c.chains) <= atOnce {
		return [][]xtables.Section{rootSections(t, have, c.chains)}
	}
	var out [][]xtables.Section
	for names := range slices.Chunk(byLevel(c.chains), atOnce) {
		s := xtables.Section{Table: xtables.NAT, Chains: map[string][]string{}}
		for _, name := range names {
			s.Chains[name] = c.chains[name]
		}
		for _, shared := range []string{xtables.MarkMasquerade, xtables.MarkNotPod} { // endpoints' chains lead there
			if rules := t.rules(xtables.ChainID{Table: xtables.NAT, Name: shared}); len(rules) > 0 {
				s.Chains[shared] = rules
			}
		}
		out = append(out, []xtables.Section{s})
	}
	return append(out, rootSections(t, have, nil))
}

// rootSections have the chains that ports share and the hooks, and in table nat some more.
func rootSections(t *tables, have *xtables.Existing, more map[string][]string) []xtables.Section {
	var out []xtables.Section
	for _, table := range xtables.Tables {
		s := xtables.Section{Table: table, Chains: map[string][]string{}, Other: have.Fix(table, hooks())}
		for id := range t.shared {
			if id.Table == table {
				s.Chains[id.Name] = t.rules(id)
			}
		}
		if table == xtables.Filter && t.shared[xtables.ChainID{Table: xtables.Filter, Name: xtables.KubeletFirewall}] != nil {
			s.Other = append(s.Other, kubeletHooks(have)...)
		}
		if table == xtables.NAT {
			maps.Copy(s.Chains, more)
		}
		out = append(out, s)
	}
	return out
}

// kubeletHooks lead to the chain that is the kubelet's as well, whose rule both of us make. They are added if they are
// missing, and never removed.
func kubeletHooks(have *xtables.Existing) []string {
	var out []string
	for _, chain := range []string{"INPUT", "OUTPUT"} {
		if !have.Kubelet[chain] {
			out = append(out, "-I "+chain+" -j "+xtables.KubeletFirewall)
		}
	}
	return out
}

// byLevel has chains before those that lead to them.
func byLevel(chains map[string][]string) []string {
	return slices.SortedFunc(maps.Keys(chains), func(a, b string) int {
		return cmp.Or(cmp.Compare(xtables.Level(b), xtables.Level(a)), cmp.Compare(a, b))
	})
}
