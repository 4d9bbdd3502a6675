package iptables

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/proxy/xtables"
)

// many are Services with two endpoints each, of which one is at the address that second tells.
func many(n, second int) []*model.Port {
	balance := model.Route{Set: model.Cluster}
	masq := model.Route{Set: model.Cluster, Masquerade: true}
	var out []*model.Port
	for i := range n {
		addr := func(a int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(a), byte(i >> 8), byte(i)}) }
		out = append(out, &model.Port{
			Key:       model.PortKey{Service: model.Name{Namespace: "ns", Name: fmt.Sprintf("service-%d", i)}, Protocol: model.TCP, Family: model.IPv4},
			Frontends: []model.Frontend{{Kind: model.ClusterIP, Addr: addr(96), Port: 80, Routes: model.Routes{balance, masq, masq}}},
			Cluster:   []model.Endpoint{{Addr: netip.AddrPortFrom(addr(128), 8080)}, {Addr: netip.AddrPortFrom(addr(second), 8080)}},
		})
	}
	return out
}

// The cost of all rules, of an endpoint that is another, and of a Service that comes or goes, with both kinds of iptables.
func BenchmarkBackend(b *testing.B) {
	for _, kind := range kinds {
		for _, n := range []int{10, 1000, 5000, 10000} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				use(b, kind)
				benchmark(b, n)
			})
		}
	}
}

func benchmark(b *testing.B, n int) {
	backend := newBackend(b)
	at := [][]*model.Port{many(n, 129), many(n, 130)}
	rules := model.Rules{Network: modeltest.Network(), Ports: at[0]}
	replace := func(b *testing.B) {
		if err := backend.Replace(b.Context(), rules); err != nil {
			b.Fatal(err)
		}
	}
	apply := func(b *testing.B, change model.Change) {
		if err := backend.Apply(b.Context(), []model.Change{change}); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			if err := xtables.Cleanup(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			replace(b)
		}
	})
	b.Run("replace", func(b *testing.B) {
		for b.Loop() {
			replace(b)
		}
	})
	b.Run("endpoint", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			apply(b, model.Change{Old: at[i%2][i%n], New: at[(i+1)%2][i%n]})
		}
	})
	b.Run("service", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if i%2 == 0 {
				apply(b, model.Change{Old: at[0][7]})
			} else {
				apply(b, model.Change{New: at[0][7]})
			}
		}
	})
}
