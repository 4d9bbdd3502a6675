package nft

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// former is a table that is in the kernel before we make ours.
type former struct {
	table *nftables.Table
	// clients are those whose endpoints were kept, by the name of the set.
	clients map[string][]nftables.SetElement
}

// existing finds the tables of an earlier process, with what of them is to be kept.
func (b *Backend) existing() ([]former, error) {
	var out []former
	for _, f := range families {
		tables, err := b.conn.ListTablesOfFamily(f.table)
		if err != nil {
			return nil, fmt.Errorf("nftables: list tables: %w", err)
		}
		for _, t := range tables {
			if t.Name != tableName {
				continue
			}
			clients, err := b.clients(t)
			if err != nil {
				return nil, err
			}
			out = append(out, former{table: t, clients: clients})
		}
	}
	return out, nil
}

// clients reads the sets of clients that have some. They are the only thing in a table that we did not put there.
func (b *Backend) clients(t *nftables.Table) (map[string][]nftables.SetElement, error) {
	sets, err := b.conn.GetSets(t)
	if err != nil {
		return nil, fmt.Errorf("nftables: list sets: %w", err)
	}
	out := map[string][]nftables.SetElement{}
	for _, s := range sets {
		if !strings.HasPrefix(s.Name, "affinity/") {
			continue
		}
		elements, err := b.conn.GetSetElements(s)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("nftables: list %s: %w", s.Name, err)
		}
		if len(elements) > 0 {
			out[s.Name] = elements
		}
	}
	return out, nil
}

// restoreClients has clients keep their endpoints for as long as was left.
func (b *Backend) restoreClients(there []former) {
	for _, old := range there {
		for _, t := range b.tables {
			if t.family.table != old.table.Family {
				continue
			}
			for name, elements := range old.clients {
				if set := t.sets[name]; set != nil {
					for part := range slices.Chunk(unexpired(elements), elementsAtOnce) {
						_ = b.conn.SetAddElements(set, part) // only fails for an anonymous set
					}
				}
			}
		}
	}
}

func unexpired(elements []nftables.SetElement) []nftables.SetElement {
	var out []nftables.SetElement
	for _, e := range elements {
		if left := e.Expires; left >= time.Second {
			out = append(out, nftables.SetElement{Key: e.Key, Timeout: left})
		}
	}
	return out
}
