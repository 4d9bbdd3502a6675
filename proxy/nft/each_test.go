package nft

import (
	"context"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/test/kernel"
)

// freshly is what a fresh start makes of a cluster's objects.
func freshly(ctx context.Context, c *modeltest.Cluster) (map[model.Family]string, error) {
	out := map[model.Family]string{}
	return out, kernel.Apart(func() error {
		b, err := New(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer b.Close()
		if err := b.Replace(ctx, c.Rules()); err != nil {
			return err
		}
		for _, f := range c.Net.Families {
			table, err := Read(f)
			if err != nil {
				return err
			}
			out[f] = canonicalOf(table)
		}
		return nil
	})
}

// After each single change the kernel holds what it would hold after a fresh start.
func TestEachChange(t *testing.T) {
	kernel.Require(t, kernel.Root)
	b := newBackend(t)
	c := modeltest.New(11, modeltest.Network())
	if err := b.Replace(t.Context(), c.Rules()); err != nil {
		t.Fatal(err)
	}
	for i := range modeltest.Changes(150) {
		c.Change(12)
		if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		b.dropStale()
		fresh, err := freshly(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range c.Net.Families {
			if diff := cmp.Diff(sorted(fresh[f]), sorted(canonical(t, f))); diff != "" {
				t.Fatalf("change %d, %s: -fresh +changed: %s", i, f, diff)
			}
		}
	}
}
