package ipvs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/proxy/xtables"
)

// What the kernel is to hold for a frontend, by what is to happen to packets from pods, from the node and from outside.
func TestDescribe(t *testing.T) {
	cluster, local := model.Route{Action: model.Balance}, model.Route{Action: model.Balance, Set: model.Local}
	masqueraded := model.Route{Action: model.Balance, Masquerade: true}
	reject, drop := model.Route{Action: model.Reject}, model.Route{Action: model.Drop}
	routes := func(pod, node, outside model.Route) (r model.Routes) {
		r[model.FromPod], r[model.FromNode], r[model.FromOutside] = pod, node, outside
		return r
	}
	vip, own := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("192.0.2.7")
	for _, tt := range []struct {
		name     string
		frontend model.Frontend
		want     string
	}{
		{"cluster IP", model.Frontend{Kind: model.ClusterIP, Addr: vip, Port: 80, Routes: routes(cluster, cluster, masqueraded)},
			"IPVS-IPS CLUSTER-IP LOOP-BACK, 10.96.0.1:80 to all"},
		{"cluster IP, policy Local", model.Frontend{Kind: model.ClusterIP, Addr: vip, Port: 80, Routes: routes(local, local, local)},
			"IPVS-IPS CLUSTER-IP LOOP-BACK, 10.96.0.1:80 to local"},
		{"cluster IP, nobody local", model.Frontend{Kind: model.ClusterIP, Addr: vip, Port: 80, Routes: routes(drop, drop, drop)},
			"IPVS-IPS NO-LOCAL-INTERNAL LOOP-BACK"},
		{"no endpoints", model.Frontend{Kind: model.ClusterIP, Addr: vip, Port: 80, Routes: routes(reject, reject, reject)},
			"IPVS-IPS LOOP-BACK"},
		{"external", model.Frontend{Kind: model.ExternalIP, Addr: vip, Port: 80, Routes: routes(masqueraded, masqueraded, masqueraded)},
			"IPVS-IPS EXTERNAL-IP LOOP-BACK, 10.96.0.1:80 to all"},
		{"external, policy Local", model.Frontend{Kind: model.ExternalIP, Addr: vip, Port: 80, Routes: routes(cluster, masqueraded, local)},
			"IPVS-IPS EXTERNAL-IP-LOCAL LOOP-BACK, 10.96.0.1:80 to local"},
		{"load balancer, policy Local, nobody local", model.Frontend{Kind: model.LoadBalancer, Addr: vip, Port: 80, Routes: routes(cluster, masqueraded, drop)},
			"IPVS-IPS NO-LOCAL LOAD-BALANCER-LOCAL LOOP-BACK, 10.96.0.1:80 to all"},
		{"load balancer for some", model.Frontend{Kind: model.LoadBalancer, Addr: vip, Port: 80, Routes: routes(masqueraded, masqueraded, masqueraded),
			Sources: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("198.51.100.0/24")}},
			"IPVS-IPS LOAD-BALANCER-FW LOAD-BALANCER-SOURCE-CIDR LOAD-BALANCER-SOURCE-CIDR LOAD-BALANCER LOOP-BACK, 10.96.0.1:80 to all"},
		{"node port", model.Frontend{Kind: model.NodePort, Port: 30080, Routes: routes(masqueraded, masqueraded, masqueraded)},
			"NODE-PORT LOOP-BACK, 192.0.2.1:30080 to all"},
		{"node port, policy Local", model.Frontend{Kind: model.NodePort, Port: 30080, Routes: routes(cluster, masqueraded, local)},
			"NODE-PORT-LOCAL LOOP-BACK, 192.0.2.1:30080 to local"},
		// The node's own addresses are not the device's, and other ports of theirs are not rejected.
		{"external, the node's own", model.Frontend{Kind: model.ExternalIP, Addr: own, Port: 80, Routes: routes(masqueraded, masqueraded, masqueraded)},
			"EXTERNAL-IP LOOP-BACK, 192.0.2.7:80 to all"},
		{"external, the node's own, no endpoints", model.Frontend{Kind: model.ExternalIP, Addr: own, Port: 80, Routes: routes(reject, reject, reject)},
			"NO-ENDPOINTS LOOP-BACK"},
		{"node port, no endpoints", model.Frontend{Kind: model.NodePort, Port: 30080, Routes: routes(reject, reject, reject)},
			"NO-ENDPOINTS LOOP-BACK"},
		{"load balancer, the node's own", model.Frontend{Kind: model.LoadBalancer, Addr: own, Port: 80, Routes: routes(cluster, masqueraded, local)},
			"LOAD-BALANCER-LOCAL LOOP-BACK, 192.0.2.7:80 to local"},
		{"cluster IP that another device has, too", model.Frontend{Kind: model.ClusterIP, Addr: own, Port: 80, Routes: routes(cluster, cluster, masqueraded)},
			"IPVS-IPS CLUSTER-IP LOOP-BACK, 192.0.2.7:80 to all"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := &model.Port{
				Key:       model.PortKey{Service: model.Name{Namespace: "ns", Name: "web"}, Protocol: model.TCP, Family: model.IPv4},
				Frontends: []model.Frontend{tt.frontend},
				Cluster:   []model.Endpoint{{Addr: netip.MustParseAddrPort("10.244.1.1:8080"), OnNode: true}, {Addr: netip.MustParseAddrPort("10.244.2.1:8080")}},
				Local:     []model.Endpoint{{Addr: netip.MustParseAddrPort("10.244.1.1:8080"), OnNode: true}},
			}
			if got := words(node{nodePorts: modeltest.NodeSource[:], own: map[netip.Addr]bool{own: true}}.describe(port)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func words(d *described) string {
	var sets, servers []string
	for _, e := range d.entries {
		sets = append(sets, e.set)
	}
	for s, to := range d.servers {
		whom := map[int]string{1: "local", 2: "all"}[len(to.endpoints)]
		servers = append(servers, fmt.Sprintf(", %s to %s", s.addr, whom))
	}
	slices.Sort(servers)
	return strings.Join(sets, " ") + strings.Join(servers, "")
}

// Rules don't depend on Services, lead to chains that are there, and match sets that are.
func TestRules(t *testing.T) {
	network := modeltest.Network()
	more := modeltest.Network()
	more.Local.Prefixes = append(more.Local.Prefixes, netip.MustParsePrefix("10.245.0.0/16"))
	all, bridge := modeltest.Network(), modeltest.Network()
	all.MasqueradeAll = true
	bridge.Local = model.LocalDetection{Bridge: "cni0"}
	for name, n := range map[string]*model.Network{"one range": &network, "two ranges": &more, "masquerade all": &all, "bridge": &bridge, "unknown": {MasqueradeMark: 1}} {
		for _, family := range []model.Family{model.IPv4, model.IPv6} {
			for _, section := range rules(family, n) {
				checkSection(t, name, family, section)
			}
		}
	}
	if diff := cmp.Diff([]string{
		"-s 10.244.0.0/16 -j RETURN", "-s 10.245.0.0/16 -j RETURN", "-j KUBE-MARK-MASQ",
	}, rules(model.IPv4, &more)[2].Chains[xtables.MarkNotPod]); diff != "" {
		t.Errorf("with two ranges of pods (-want +got):\n%s", diff)
	}
}

func checkSection(t *testing.T, name string, family model.Family, s xtables.Section) {
	t.Helper()
	known := map[string]bool{}
	for set := range setTypes {
		known[setName(family, set)] = true
	}
	for chain, lines := range s.Chains {
		if !xtables.IsOurs(chain) {
			t.Errorf("%s: chain %s would not be cleaned up", name, chain)
		}
		for _, line := range lines {
			fields := strings.Fields(line)
			to := fields[slices.Index(fields, "-j")+1]
			if _, ok := s.Chains[to]; strings.HasPrefix(to, "KUBE-") && !ok {
				t.Errorf("%s: %s leads to chain %s, which is not there", name, chain, to)
			}
			if i := slices.Index(fields, "--match-set"); i >= 0 && !known[fields[i+1]] {
				t.Errorf("%s: %s matches set %s, which is not there", name, chain, fields[i+1])
			}
		}
	}
	for _, h := range hooks() {
		if _, ok := s.Chains[strings.TrimPrefix(h.Rule, "-j ")]; h.Table == s.Table && !ok {
			t.Errorf("%s: %s leads to %s, which is not there", name, h.Chain, h.Rule)
		}
	}
}
