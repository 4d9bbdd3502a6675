package proxy

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/test/kernel"
)

// differences are where kube-proxy does otherwise than the table says, by mode: a part of "SCENARIO: FROM to TO". Each has
// its reason in docs/proxy.md.
var differences = map[string][]string{
	"nftables": {"two Services, one address"},
	"iptables": {"two Services, one address", "no endpoints at all, IPv4: node to public-", "no endpoints at all, IPv6: node to public-"},
}

// TestKubeProxy plays the table with the real kube-proxy, so that it is known that the table is right. It takes minutes,
// and is for who changes the table: set ORLOP_TEST_PEERS=1.
func TestKubeProxy(t *testing.T) {
	kernel.Require(t, kernel.Root)
	if os.Getenv("ORLOP_TEST_PEERS") == "" {
		t.Skip("set ORLOP_TEST_PEERS=1 to play the table with the real kube-proxy")
	}
	n := network(t)
	quick(t, n)
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			cases := 0
			for _, s := range table {
				if s.only != "" && s.only != mode {
					continue
				}
				for _, f := range []family{0, 1} {
					cases += n.playPeer(t, f, s, mode)
				}
			}
			t.Logf("%d cases", cases)
		})
	}
}

// markers is the port of the last Service that says that rules are set: those of an earlier process have others.
var markers int32 = 1000

// playPeer runs kube-proxy for one scenario.
func (n *topology) playPeer(t *testing.T, f family, s scenario, mode string) int {
	t.Helper()
	server := kubetest.New(t)
	server.Set(thisNodeInZone())
	for _, o := range s.objects(f) {
		server.Set(o.(kubetest.Object))
	}
	markers++
	for g, addr := range []string{"10.96.9.9", "fd00:96::9:9"} {
		name := fmt.Sprintf("marker-%d", g)
		server.Set(service(family(g), named(name, addr), func(s *corev1.Service) { s.Spec.Ports[0].Port = markers }), slice(family(g), name, "pod-a"))
	}
	network := s.net()
	if mode == "nftables" && len(network.ServiceCIDRs) > 0 {
		server.Set(serviceCIDR(network))
	}
	p := start(t, peers, mode, server, network)
	p.ready(t)
	n.awaitMarker(t, p, "10.96.9.9")
	n.awaitMarker(t, p, "fd00:96::9:9")
	for _, inet := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, inet, everything{}); err != nil {
			t.Fatal(err)
		}
	}
	for name, problem := range n.deliver(f, s, mode) {
		if known(mode, name) {
			t.Logf("as docs/proxy.md says: %s: %s", name, problem)
			continue
		}
		t.Errorf("%s: %s", name, problem)
	}
	p.stop()
	return len(s.packets)
}

// awaitMarker waits until the Service answers that was added last.
func (n *topology) awaitMarker(t *testing.T, s *subject, addr string) {
	t.Helper()
	for end := time.Now().Add(kernel.Patient(30 * time.Second)); ; {
		got, err := n.send(hostOf("client"), netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(markers)), model.TCP, 0)
		if err == nil && got.server.IsValid() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not serve: %+v, %v\n%s", s.name, got, err, tail(s.log.String()))
		}
	}
}

func thisNodeInZone() *corev1.Node {
	node := thisNode()
	node.Labels = map[string]string{corev1.LabelTopologyZone: "a"}
	return node
}

func serviceCIDR(n model.Network) *networkingv1.ServiceCIDR {
	out := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}}
	for _, c := range n.ServiceCIDRs {
		out.Spec.CIDRs = append(out.Spec.CIDRs, c.String())
	}
	out.Status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue}}
	return out
}

func known(mode, name string) bool {
	for _, d := range differences[mode] {
		if strings.Contains(name, d) {
			return true
		}
	}
	return false
}

// deliver plays a scenario's packets and tells what went otherwise than the table says.
func (n *topology) deliver(f family, s scenario, mode string) map[string]string {
	type result struct{ name, problem string }
	results := make(chan result)
	waiting := 0
	for _, p := range s.packets {
		play := func() result {
			return result{fmt.Sprintf("%s, %s: %v", s.name, f.model(), p), n.check(f, p, p.wantIn(mode))}
		}
		waiting++
		if p.protocol == model.SCTP { // see sendSCTP
			r := play()
			go func() { results <- r }()
			continue
		}
		go func() { results <- play() }()
	}
	out := map[string]string{}
	for range waiting {
		if r := <-results; r.problem != "" {
			out[r.name] = r.problem
		}
	}
	return out
}
