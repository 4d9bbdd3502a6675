package iptables

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
)

// Whatever objects there are, rules do for them what the model says. With many endpoints the tracer would take hours, as it
// tries each of them for each packet: these are the same rules, only more.
func TestHostileAgree(t *testing.T) {
	const mostSlices = 19
	for _, h := range modeltest.HostileObjects() {
		if len(h.Slices) > mostSlices {
			continue
		}
		t.Run(h.Name, func(t *testing.T) {
			c := h.Cluster(modeltest.Network())
			p := play(t, model.Rules{Network: c.Net})
			p.apply(t, c.State.Commit())
			p.agree(t, c)
			play(t, c.Rules()).agree(t, c)
		})
	}
}

// The kernel takes these rules, as a change and as a whole, and nothing of them stays.
func TestHostileObjects(t *testing.T) {
	forEachKind(t, func(t *testing.T) {
		b := newBackend(t)
		for _, h := range modeltest.HostileObjects() {
			t.Run(h.Name, func(t *testing.T) {
				c := h.Cluster(modeltest.Network())
				if err := b.Replace(t.Context(), model.Rules{Network: c.Net}); err != nil {
					t.Fatal(err)
				}
				empty := saved(t)
				if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
					t.Fatal(err)
				}
				changed := saved(t)
				if err := b.Replace(t.Context(), c.Rules()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(saved(t), changed); diff != "" {
					t.Errorf("-replaced +changed:\n%.2000s", diff)
				}
				for name := range c.Services {
					c.State.DeleteService(name)
				}
				if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(empty, saved(t)); diff != "" {
					t.Errorf("with all Services gone, -before +after:\n%.2000s", diff)
				}
			})
		}
	})
}
