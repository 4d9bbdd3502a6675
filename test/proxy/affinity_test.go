package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/test/kernel"
)

// affinityTime is how long clients keep their endpoints here.
const affinityTime = 2 * time.Second

// visitors are clients, and what they go to.
var visitors = []struct {
	from, to string
	protocol model.Protocol
}{
	{"client", "cluster-1:80", model.TCP}, {"pod-b", "cluster-1:80", model.TCP}, {"node", "cluster-1:80", model.TCP},
	{"client", "cluster-1:81", model.UDP}, {"outside", "cluster-1:81", model.UDP},
	{"outside", "node:30080", model.TCP}, {"client", "node:30080", model.TCP}, {"outside", "public-1:80", model.TCP},
}

// A client keeps its endpoint as long as it comes again within the time, whatever it comes by, and then gets any.
func TestAffinityEnds(t *testing.T) {
	n := network(t)
	for _, m := range modes {
		if m.name == "ipvs" { // which keeps a client for as long as the kernel tracks one of its connections, some minutes
			continue
		}
		for _, f := range []family{0, 1} {
			t.Run(fmt.Sprintf("%s/%s", m.name, f.model()), func(t *testing.T) {
				kernel.Require(t, m.needs...)
				backend := m.start(t)
				state, err := stateOf(defaultNetwork(), []runtime.Object{
					service(f, affinity(int32(affinityTime/time.Second)), nodePort(30080), loadBalancer(f.public(1)), port("second", corev1.ProtocolUDP, 81)),
					slice(f, "web", "pod-a", "pod-b", "remote-a", "remote-b"),
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := backend.Replace(t.Context(), model.Rules{Network: defaultNetwork(), Ports: slices.Collect(state.Ports())}); err != nil {
					t.Fatal(err)
				}
				n.affinityEnds(t, f)
			})
		}
	}
}

func (n *topology) affinityEnds(t *testing.T, f family) {
	t.Helper()
	had := n.visit(t, f)
	// Longer in all than the time, but never that long without a visit.
	for begin := time.Now(); time.Since(begin) < affinityTime*3/2; time.Sleep(affinityTime / 10) {
		visited := time.Now()
		if now := n.visit(t, f); !slices.Equal(now, had) {
			if time.Since(visited) > affinityTime/2 {
				t.Skipf("the machine is too busy to tell: a visit takes %s", time.Since(visited))
			}
			t.Fatalf("after %s clients had %v, and have %v", time.Since(begin), had, now)
		}
	}
	changed := make([]bool, len(visitors))
	for range 8 { // each one gets another with a probability of 3 in 4
		time.Sleep(affinityTime + affinityTime/4)
		now := n.visit(t, f)
		for i := range now {
			changed[i] = changed[i] || now[i] != had[i]
		}
		if !slices.Contains(changed, false) {
			return
		}
	}
	t.Errorf("clients that stayed away got the same endpoints each time: %v of %v", changed, visitors)
}

// visit is where each of the visitors ends now.
func (n *topology) visit(t *testing.T, f family) []netip.Addr {
	t.Helper()
	out := make([]netip.Addr, len(visitors))
	for i, v := range visitors {
		got, err := n.send(hostOf(v.from), f.address(v.to), v.protocol, 0)
		if err != nil || !got.server.IsValid() {
			t.Fatalf("%v: %+v, %v", v, got, err)
		}
		out[i] = got.server.Addr()
	}
	return out
}
