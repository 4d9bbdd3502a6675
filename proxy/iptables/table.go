package iptables

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/xtables"
)

// tables is what the kernel holds in one family, kept so that it need not be listed. A chain of a single port follows
// from the port; of the others the parts are kept.
type tables struct {
	family  *family
	network *model.Network
	ports   map[model.PortKey]*model.Port
	shared  map[xtables.ChainID]map[part]int // how many ports have a part
}

func newTables(f *family, network *model.Network) *tables {
	t := &tables{family: f, network: network, ports: map[model.PortKey]*model.Port{}, shared: map[xtables.ChainID]map[part]int{}}
	for _, p := range fixed(f, network) {
		t.take(p)
	}
	return t
}

// fresh is what the kernel is to hold, with all that it is to be told.
func fresh(f *family, rules *model.Rules) (*tables, *change, error) {
	t, c := newTables(f, &rules.Network), newChange()
	for _, port := range rules.Ports {
		if port.Key.Family != f.Family {
			continue
		}
		if err := t.put(c, port.Key, port); err != nil {
			return nil, nil, err
		}
	}
	for p, n := range c.more {
		for range n {
			t.take(p)
		}
	}
	return t, c, nil
}

// take adds a part, and tells whether the chain is another for it.
func (t *tables) take(p part) bool {
	id := xtables.ChainID{Table: p.table, Name: p.chain}
	if t.shared[id] == nil {
		t.shared[id] = map[part]int{}
	}
	t.shared[id][p]++
	return t.shared[id][p] == 1
}

// leave is the opposite of take.
func (t *tables) leave(p part) bool {
	id := xtables.ChainID{Table: p.table, Name: p.chain}
	if t.shared[id][p]--; t.shared[id][p] > 0 {
		return false
	}
	if delete(t.shared[id], p); len(t.shared[id]) == 0 {
		delete(t.shared, id)
	}
	return true
}

// rules are those of a chain of many ports.
func (t *tables) rules(id xtables.ChainID) []string {
	parts := slices.SortedFunc(maps.Keys(t.shared[id]), func(a, b part) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), strings.Compare(a.rules, b.rules))
	})
	var out []string
	for _, p := range parts {
		if p.rules != "" {
			out = append(out, strings.Split(p.rules, "\n")...)
		}
	}
	return out
}

// change is what is to be done in one go.
type change struct {
	chains map[string][]string // of single ports, by name
	gone   map[string]bool
	more   map[part]int // by how many more ports have a part, or fewer
}

func newChange() *change {
	return &change{chains: map[string][]string{}, gone: map[string]bool{}, more: map[part]int{}}
}

// put changes what is said of a port: now is nil for one that is gone. What was said before is forgotten only if there
// was no error.
func (t *tables) put(c *change, key model.PortKey, now *model.Port) error {
	before, after := &described{}, &described{}
	var err error
	if old := t.ports[key]; old != nil {
		if before, err = describe(t.family, t.network, old); err != nil {
			return err
		}
	}
	if now != nil {
		if after, err = describe(t.family, t.network, now); err != nil {
			return err
		}
	}
	c.replace(before, after)
	if now == nil {
		delete(t.ports, key)
	} else {
		t.ports[key] = now
	}
	return nil
}

func (c *change) replace(before, after *described) {
	had := map[string][]string{}
	for _, chain := range before.chains {
		had[chain.name] = chain.rules
		c.gone[chain.name] = true
		delete(c.chains, chain.name)
	}
	for _, chain := range after.chains {
		delete(c.gone, chain.name)
		if !slices.Equal(had[chain.name], chain.rules) {
			c.chains[chain.name] = chain.rules
		}
	}
	for _, p := range before.parts {
		c.more[p]--
	}
	for _, p := range after.parts {
		c.more[p]++
	}
}

// apply makes the change in memory, and tells it in the words of iptables-restore. Table filter only meets packets that
// table nat leaves alone, so that what is added to it comes before, and what is taken from it after nat's change: no
// packet that is to be refused passes meanwhile, and none that is served is refused.
func (t *tables) apply(c *change) []byte {
	var out bytes.Buffer
	added := t.count(c, xtables.Filter, 1)
	t.section(&out, xtables.Filter, added, nil, nil)
	changed := t.count(c, xtables.NAT, 1)
	maps.Copy(changed, t.count(c, xtables.NAT, -1))
	t.section(&out, xtables.NAT, changed, c.chains, c.gone)
	t.section(&out, xtables.Filter, t.count(c, xtables.Filter, -1), nil, nil)
	return out.Bytes()
}

// count changes how many ports have the parts that more or fewer have, by the sign, and tells which chains are others.
func (t *tables) count(c *change, table string, sign int) map[xtables.ChainID]bool {
	out := map[xtables.ChainID]bool{}
	for p, n := range c.more {
		if p.table != table {
			continue
		}
		for ; n*sign > 0; n -= sign {
			do := t.take
			if sign < 0 {
				do = t.leave
			}
			if do(p) {
				out[xtables.ChainID{Table: p.table, Name: p.chain}] = true
			}
		}
	}
	return out
}

// section writes what becomes of a table in one transaction: chains of many ports, and those of single ones.
func (t *tables) section(out *bytes.Buffer, table string, shared map[xtables.ChainID]bool, chains map[string][]string, gone map[string]bool) {
	s := xtables.Section{Table: table, Chains: map[string][]string{}, Gone: slices.Collect(maps.Keys(gone))}
	maps.Copy(s.Chains, chains)
	for id := range shared {
		if t.shared[id] == nil {
			s.Gone = append(s.Gone, id.Name)
		} else {
			s.Chains[id.Name] = t.rules(id)
		}
	}
	slices.Sort(s.Gone)
	s.Write(out)
}
