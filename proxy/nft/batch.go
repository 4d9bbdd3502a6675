package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// batch is one transaction: the kernel takes all of it or nothing, and no packet sees a part of it.
type batch struct {
	conn  *nftables.Conn
	table *nftables.Table
	sets  map[string]*nftables.Set // those that elements are put into

	newSets  []*nftables.Set
	goneSets []*nftables.Set
	// chains that are new or whose rules are others, and chains that lead nowhere any more.
	chains, stale map[string]chain
	base          map[string]*nftables.Chain // those of chains that the kernel sends packets to
	fresh         bool                       // the table has just been made: nothing has to be emptied
	add, del      map[string][]element
}

func newBatch(conn *nftables.Conn, t *nftables.Table, sets map[string]*nftables.Set) *batch {
	return &batch{
		conn: conn, table: t, sets: sets, chains: map[string]chain{}, stale: map[string]chain{}, base: map[string]*nftables.Chain{},
		add: map[string][]element{}, del: map[string][]element{},
	}
}

// elementsAtOnce keeps the list of elements of a message below the 64 kB that an attribute can hold: an element with an
// IPv6 address, the name of a chain and a comment of their full lengths takes some 400 bytes.
const elementsAtOnce = 150

// write puts the batch's messages in the order in which the kernel can take them: what is named must be there.
func (b *batch) write() error {
	for _, s := range b.newSets {
		if err := b.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	for _, c := range b.chains {
		if base := b.base[c.name]; base != nil {
			b.conn.AddChain(base)
			continue
		}
		b.conn.AddChain(b.chain(c.name))
	}
	for _, c := range b.chains {
		if !b.fresh {
			b.conn.FlushChain(b.chain(c.name))
		}
		for _, rule := range c.rules() {
			b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: b.chain(c.name), Exprs: rule})
		}
	}
	for name, elements := range b.del {
		if err := b.elements(name, elements, b.conn.SetDeleteElements); err != nil {
			return err
		}
	}
	for name, elements := range b.add {
		if err := b.elements(name, elements, b.conn.SetAddElements); err != nil {
			return err
		}
	}
	for name := range b.stale {
		b.conn.FlushChain(b.chain(name))
	}
	for _, s := range b.goneSets {
		b.conn.DelSet(s)
	}
	return nil
}

func (b *batch) chain(name string) *nftables.Chain {
	return &nftables.Chain{Name: name, Table: b.table}
}

func (b *batch) elements(name string, elements []element, send func(*nftables.Set, []nftables.SetElement) error) error {
	set := b.sets[name]
	for part := range slices.Chunk(elements, elementsAtOnce) {
		out := make([]nftables.SetElement, 0, len(part))
		for _, e := range part {
			out = append(out, e.netlink())
		}
		if err := send(set, out); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// maxComment is what kube-proxy's comments have; the kernel keeps up to 256 bytes with their header.
const maxComment = 128

func (e element) netlink() nftables.SetElement {
	out := nftables.SetElement{Key: []byte(e.key), Val: []byte(e.value), Comment: e.comment}
	if len(out.Comment) > maxComment {
		out.Comment = out.Comment[:maxComment]
	}
	switch e.verdict {
	case "":
	case toDrop:
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictDrop}
	default:
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.verdict}
	}
	return out
}

// shared counts who needs a chain, or an element that several ports may have.
type shared map[string]int

func (s shared) take(name string) (first bool) {
	s[name]++
	return s[name] == 1
}

func (s shared) give(name string) (last bool) {
	s[name]--
	if s[name] > 0 {
		return false
	}
	delete(s, name)
	return true
}

// isShared is true for the sets in which two ports may have the same element.
func isShared(set string) bool { return set == clusterIPs || set == hairpins }

// change brings the batch and the counts from what was wanted of a port to what is wanted now; either may be nil.
func (t *table) change(b *batch, old, now *described) {
	had, has := map[element]bool{}, map[element]bool{}
	if old != nil {
		had = setOf(old.elements)
	}
	if now != nil {
		has = setOf(now.elements)
	}
	for e := range has {
		if !had[e] && (!isShared(e.set) || t.shared.take(e.set+e.key)) {
			b.add[e.set] = append(b.add[e.set], e)
		}
	}
	for e := range had {
		if !has[e] && (!isShared(e.set) || t.shared.give(e.set+e.key)) {
			b.del[e.set] = append(b.del[e.set], e)
		}
	}
	t.changeSets(b, old, now)
	t.changeChains(b, old, now)
}

func setOf(elements []element) map[element]bool {
	out := make(map[element]bool, len(elements))
	for _, e := range elements {
		out[e] = true
	}
	return out
}

// changeChains takes the new ones before it gives the old ones back, so that what is in both stays.
func (t *table) changeChains(b *batch, old, now *described) {
	before, after := chainsOf(old), chainsOf(now)
	for name, c := range after {
		have, kept := before[name]
		switch {
		case kept && have.version == c.version:
		case kept:
			b.chains[name] = c
		case t.shared.take("chain " + name):
			b.chains[name] = c
			delete(b.stale, name)
			delete(t.stale, name)
		}
	}
	for name, c := range before {
		if _, kept := after[name]; !kept && t.shared.give("chain "+name) {
			delete(b.chains, name)
			b.stale[name] = c
			t.stale[name] = true
		}
	}
}

func chainsOf(d *described) map[string]chain {
	out := map[string]chain{}
	if d != nil {
		for _, c := range d.chains {
			out[c.name] = c
		}
	}
	return out
}

// changeSets leaves a set alone whose timeout alone is another: it is in the rules that fill the set, the set's own is
// what they override.
func (t *table) changeSets(b *batch, old, now *described) {
	before, after := t.setsOf(old), t.setsOf(now)
	for name, s := range after {
		if before[name] == nil {
			b.newSets = append(b.newSets, s)
			t.sets[name] = s
		}
	}
	for name, s := range before {
		if after[name] == nil {
			b.goneSets = append(b.goneSets, s)
			delete(b.del, name) // its elements go with it
			delete(t.sets, name)
		}
	}
}

func (t *table) setsOf(d *described) map[string]*nftables.Set {
	out := map[string]*nftables.Set{}
	if d == nil {
		return out
	}
	for _, s := range d.clients {
		out[s.name] = t.family.clientSet(t.nft, s)
	}
	for _, name := range d.slotMaps {
		out[name] = t.family.slotMap(t.nft, name)
	}
	return out
}
