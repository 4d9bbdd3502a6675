package iptables

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/orlop/orlop/proxy/model"
)

// table is what the kernel holds in one family.
type table struct {
	describer
	// ports are those whose rules are there.
	ports map[model.PortKey]*model.Port
	// lists are the rules in chains that ports share, by port.
	lists map[list]map[model.PortKey][]string
}

func newTable(family model.Family, network *model.Network) *table {
	return &table{
		describer: describer{family: family, network: network}, ports: map[model.PortKey]*model.Port{},
		lists: map[list]map[model.PortKey][]string{},
	}
}

// edit is what is to be restored: chains with all of their rules, and chains that are to go.
type edit struct {
	chains map[string]map[string][]string // by table and name
	gone   map[string]map[string]bool
	dirty  map[list]bool
	blocks bool // which blocks there are has changed
}

func newEdit() *edit {
	return &edit{
		chains: map[string]map[string][]string{nat: {}, filter: {}, mangle: {}},
		gone:   map[string]map[string]bool{nat: {}, filter: {}}, dirty: map[list]bool{},
	}
}

// put changes what is there for a port; now is nil for one that is gone.
func (t *table) put(e *edit, key model.PortKey, now *model.Port) {
	before, after := &described{}, &described{}
	if old := t.ports[key]; old != nil {
		before = t.describe(old)
	}
	if delete(t.ports, key); now != nil {
		after = t.describe(now)
		t.ports[key] = now
	}
	for name, rules := range after.nat {
		have, kept := before.nat[name]
		if !kept || !slices.Equal(have, rules) {
			e.chains[nat][name] = rules
			delete(e.gone[nat], name)
		}
	}
	for name := range before.nat {
		if _, kept := after.nat[name]; !kept {
			delete(e.chains[nat], name)
			e.gone[nat][name] = true
		}
	}
	t.share(e, key, before.byList(), after.byList())
}

func (d *described) byList() map[list][]string {
	out := map[list][]string{}
	for _, s := range d.shared {
		out[s.list] = append(out[s.list], s.rule)
	}
	return out
}

func (t *table) share(e *edit, key model.PortKey, before, after map[list][]string) {
	for l, rules := range after {
		if slices.Equal(before[l], rules) {
			continue
		}
		if t.lists[l] == nil {
			t.lists[l] = map[model.PortKey][]string{}
			e.blocks = e.blocks || l.block.IsValid()
		}
		t.lists[l][key] = rules
		e.dirty[l] = true
	}
	for l := range before {
		if after[l] != nil {
			continue
		}
		e.dirty[l] = true
		if delete(t.lists[l], key); len(t.lists[l]) == 0 {
			delete(t.lists, l)
			e.blocks = e.blocks || l.block.IsValid()
		}
	}
}

// settle adds the chains that ports share and that are not as they were.
func (t *table) settle(e *edit) {
	for l := range e.dirty {
		rules, some := t.lists[l]
		if !some && l.block.IsValid() {
			e.gone[nat][l.chain] = true
			continue
		}
		delete(e.gone[l.table], l.chain)
		e.chains[l.table][l.chain] = inOrder(rules)
	}
	if e.blocks {
		e.chains[nat]["KUBE-SERVICES"] = t.services()
	}
}

// inOrder is by port, so that the same state is always written in the same way.
func inOrder(rules map[model.PortKey][]string) []string {
	var out []string
	for _, key := range slices.SortedFunc(maps.Keys(rules), model.PortKey.Compare) {
		out = append(out, rules[key]...)
	}
	return out
}

// services leads to the blocks of addresses, and last to NodePorts.
func (t *table) services() []string {
	var blocks []list
	for l := range t.lists {
		if l.block.IsValid() {
			blocks = append(blocks, l)
		}
	}
	slices.SortFunc(blocks, func(a, b list) int { return cmp.Compare(a.block.String(), b.block.String()) })
	var out []string
	for _, l := range blocks {
		out = append(out, fmt.Sprintf("-d %s -j %s", l.block, l.chain))
	}
	return append(out, t.toNodePorts()...)
}

func (t *table) toNodePorts() []string {
	const leads = comment0 + "-j KUBE-NODEPORTS"
	if !t.network.AllNodePorts {
		var out []string
		for _, addr := range t.network.NodePorts {
			if model.FamilyOf(addr) == t.family && !addr.IsLoopback() {
				out = append(out, fmt.Sprintf("-d %s %s", addr, leads))
			}
		}
		return out
	}
	const local = "-m addrtype --dst-type LOCAL "
	switch {
	case t.family == model.IPv6: // the kernel can't route [::1] to another host
		return []string{"! -d ::1/128 " + local + leads}
	case !t.network.LocalhostNodePorts:
		return []string{"! -d 127.0.0.0/8 " + local + leads}
	}
	return []string{local + leads}
}

const comment0 = `-m comment --comment "NodePorts; this must be the last rule" `

// text is the input of iptables-restore: chains that are named with a colon are made, and emptied if they are there.
func (e *edit) text() []byte {
	var b strings.Builder
	for _, name := range []string{mangle, filter, nat} {
		if len(e.chains[name]) == 0 && len(e.gone[name]) == 0 {
			continue
		}
		fmt.Fprintf(&b, "*%s\n", name)
		chains, gone := slices.Sorted(maps.Keys(e.chains[name])), slices.Sorted(maps.Keys(e.gone[name]))
		for _, c := range slices.Concat(chains, gone) {
			fmt.Fprintf(&b, ":%s - [0:0]\n", c)
		}
		for _, c := range chains {
			for _, rule := range e.chains[name][c] {
				fmt.Fprintf(&b, "-A %s %s\n", c, rule)
			}
		}
		for _, c := range gone {
			fmt.Fprintf(&b, "-X %s\n", c)
		}
		b.WriteString("COMMIT\n")
	}
	return []byte(b.String())
}
