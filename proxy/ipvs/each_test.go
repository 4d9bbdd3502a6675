package ipvs

import (
	"context"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/test/kernel"
)

// freshly is what a fresh start makes of a cluster's objects.
func freshly(ctx context.Context, c *modeltest.Cluster) (out []string, err error) {
	err = kernel.Apart(func() error {
		if err := kernel.LoopbackUp(); err != nil {
			return err
		}
		b, err := New(slog.New(slog.DiscardHandler), Settings{Scheduler: "rr"})
		if err != nil {
			return err
		}
		defer b.Close()
		if err := b.Replace(ctx, c.Rules()); err != nil {
			return err
		}
		out, err = thereNow()
		return err
	})
	return out, err
}

// After each single change the kernel holds what it would hold after a fresh start.
func TestEachChange(t *testing.T) {
	b := newBackend(t, Settings{})
	c := modeltest.New(11, modeltest.Network())
	if err := b.Replace(t.Context(), c.Rules()); err != nil {
		t.Fatal(err)
	}
	for i := range modeltest.Changes(30) {
		c.Change(12)
		if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		fresh, err := freshly(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fresh, there(t)); diff != "" {
			t.Fatalf("change %d: -fresh +changed: %s", i, diff)
		}
	}
}
