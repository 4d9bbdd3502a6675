package nft

import (
	"testing"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
)

// Whatever objects there are, the kernel takes the rules for them, as a change and as a whole, and they do what the model
// says; and nothing of them stays.
func TestHostileObjects(t *testing.T) {
	b := newBackend(t)
	for _, h := range modeltest.HostileObjects() {
		t.Run(h.Name, func(t *testing.T) {
			c := h.Cluster(modeltest.Network())
			if err := b.Replace(t.Context(), model.Rules{Network: c.Net}); err != nil {
				t.Fatal(err)
			}
			if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
				t.Fatal(err)
			}
			agree(t, c)
			if err := b.Replace(t.Context(), c.Rules()); err != nil {
				t.Fatal(err)
			}
			agree(t, c)
			for name := range c.Services {
				c.State.DeleteService(name)
			}
			if err := b.Apply(t.Context(), c.State.Commit()); err != nil {
				t.Fatal(err)
			}
			b.dropStale()
			for _, f := range c.Net.Families {
				got := canonical(t, f)
				if err := b.Replace(t.Context(), model.Rules{Network: c.Net}); err != nil {
					t.Fatal(err)
				}
				if empty := canonical(t, f); got != empty {
					t.Errorf("%s: with all Services gone there is\n%s\ninstead of\n%s", f, got, empty)
				}
			}
		})
	}
}
