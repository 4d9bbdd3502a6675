package model_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
)

// What follows from objects does not depend on how they came to be, and what Commit tells leads from one to the next.
func TestStateForgetsTheWay(t *testing.T) {
	for seed := range uint64(20) {
		c := modeltest.New(seed, modeltest.Network())
		told := map[model.PortKey]*model.Port{}
		for i := range 300 {
			c.Change(12)
			for _, change := range c.State.Commit() {
				if told[change.Key()] != change.Old {
					t.Fatalf("seed %d, change %d: %v was %+v, and is said to have been %+v", seed, i, change.Key(), told[change.Key()], change.Old)
				}
				if told[change.Key()] = change.New; change.New == nil {
					delete(told, change.Key())
				}
			}
		}
		want := sortedPorts(slices.Collect(c.Fresh().Ports()))
		for name, got := range map[string][]*model.Port{"state": slices.Collect(c.State.Ports()), "told": values(told)} {
			if diff := gocmp.Diff(want, sortedPorts(got), gocmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
				gocmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), gocmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Fatalf("seed %d: %s differs from a fresh start (-want +got):\n%s", seed, name, diff)
			}
		}
	}
}

func values(m map[model.PortKey]*model.Port) []*model.Port {
	var out []*model.Port
	for _, p := range m {
		out = append(out, p)
	}
	return out
}

func sortedPorts(in []*model.Port) []*model.Port {
	slices.SortFunc(in, func(a, b *model.Port) int { return cmp.Or(a.Key.Compare(b.Key)) })
	return in
}

// No two ports have the same frontend: the older Service has it, and the younger one when the older is gone.
func TestClaims(t *testing.T) {
	addr := netip.MustParseAddr("10.96.0.1")
	s := model.NewState(model.Node{Name: "here"}, modeltest.Network())
	service := func(name string, created int64) *model.Service {
		return &model.Service{Name: model.Name{Namespace: "ns", Name: name}, Created: created, ClusterIPs: []netip.Addr{addr},
			Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}}
	}
	owner := func() string {
		s.Commit()
		o := s.Trace(model.Packet{To: netip.AddrPortFrom(addr, 80), Protocol: model.TCP})
		if o.Port == nil {
			return ""
		}
		return o.Port.Key.Service.Name
	}
	for i, step := range []struct {
		do   func()
		want string
	}{
		{func() { s.SetService(service("young", 2)) }, "young"},
		{func() { s.SetService(service("old", 1)) }, "old"},
		{func() { s.SetService(service("older", 1)) }, "old"}, // of the same age: by name
		{func() { s.DeleteService(model.Name{Namespace: "ns", Name: "old"}) }, "older"},
		{func() { s.SetService(service("older", 3)) }, "young"}, // deleted and made anew, seen as one change
		{func() { s.DeleteService(model.Name{Namespace: "ns", Name: "young"}) }, "older"},
		{func() { s.DeleteService(model.Name{Namespace: "ns", Name: "older"}) }, ""},
	} {
		step.do()
		if got := owner(); got != step.want {
			t.Errorf("step %d: %s has the address, want %s", i, got, step.want)
		}
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := model.NewState(model.Node{Name: "here"}, modeltest.Network())
			for i := range n {
				name := model.Name{Namespace: "ns", Name: fmt.Sprint(i)}
				s.SetService(&model.Service{Name: name, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
					Ports: []model.ServicePort{{Protocol: model.TCP, Port: 80}}})
			}
			s.Commit()
			i := 0
			for b.Loop() {
				i++
				name := model.Name{Namespace: "ns", Name: fmt.Sprint(i % n)}
				s.SetSlice(&model.Slice{Name: name, Service: name, Family: model.IPv4, Ports: []model.SlicePort{{Protocol: model.TCP, Port: 8080}},
					Endpoints: []model.SliceEndpoint{{Addr: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), Ready: true}}})
				if len(s.Commit()) != 1 {
					b.Fatal("a change is not told")
				}
			}
		})
	}
}
