package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// Table is what the kernel holds in one family, read back.
type Table struct {
	family family
	chains map[string][][]expr.Any
	base   []*nftables.Chain
	sets   map[string]map[string]nftables.SetElement // by name and key
}

// Read lists a family's table. It is for people and tests: nothing that keeps rules up to date ever lists them. The error
// is ErrNoTable if there is none.
func Read(f model.Family) (*Table, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	out := &Table{family: families[f], chains: map[string][][]expr.Any{}, sets: map[string]map[string]nftables.SetElement{}}
	table := &nftables.Table{Name: tableName, Family: out.family.table}
	if err := out.readChains(conn, table); err != nil {
		return nil, err
	}
	if len(out.chains) == 0 {
		return nil, fmt.Errorf("nftables: %s %s: %w", f, tableName, ErrNoTable)
	}
	return out, out.readSets(conn, table)
}

// ErrNoTable is for a node without rules.
var ErrNoTable = errors.New("no such table")

func (t *Table) readChains(conn *nftables.Conn, table *nftables.Table) error {
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return fmt.Errorf("nftables: list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		rules, err := conn.GetRules(table, c)
		if err != nil {
			return fmt.Errorf("nftables: list chain %s: %w", c.Name, err)
		}
		t.chains[c.Name] = [][]expr.Any{}
		for _, r := range rules {
			t.chains[c.Name] = append(t.chains[c.Name], r.Exprs)
		}
		if c.Hooknum != nil {
			t.base = append(t.base, c)
		}
	}
	return nil
}

func (t *Table) readSets(conn *nftables.Conn, table *nftables.Table) error {
	sets, err := conn.GetSets(table)
	if err != nil {
		return fmt.Errorf("nftables: list sets: %w", err)
	}
	for _, s := range sets {
		elements, err := conn.GetSetElements(s)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("nftables: list %s: %w", s.Name, err)
		}
		t.sets[s.Name] = map[string]nftables.SetElement{}
		for _, e := range elements {
			if s.IsMap && s.DataType.GetNFTMagic() == 0 { // of verdicts: the library doesn't tell that type
				if e.VerdictData, err = verdictOf(e.Val); err != nil {
					return fmt.Errorf("nftables: element of %s: %w", s.Name, err)
				}
			}
			t.sets[s.Name][string(e.Key)] = e
		}
	}
	return nil
}

// verdictOf reads the attributes of NFTA_DATA_VERDICT, which the library leaves as they are.
func verdictOf(data []byte) (*expr.Verdict, error) {
	attributes, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return nil, err
	}
	attributes.ByteOrder = binary.BigEndian
	out := &expr.Verdict{}
	for attributes.Next() {
		switch attributes.Type() {
		case unix.NFTA_VERDICT_CODE:
			out.Kind = expr.VerdictKind(int32(attributes.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			out.Chain = attributes.String()
		}
	}
	return out, attributes.Err()
}
