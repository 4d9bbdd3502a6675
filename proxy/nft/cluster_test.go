package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/modeltest"
	"github.com/orlop/orlop/proxy/trace"
)

// agree sends each packet through the model and through the rules that the kernel has.
func agree(t *testing.T, c *modeltest.Cluster) {
	t.Helper()
	for family, f := range c.Net.Families {
		table, err := Read(f)
		if err != nil {
			t.Fatal(err)
		}
		clusterIPs := map[netip.Addr]bool{}
		for port := range c.State.Ports() {
			for _, f := range port.Frontends {
				if f.Kind == model.ClusterIP {
					clusterIPs[f.Addr] = true
				}
			}
		}
		for _, to := range c.Targets(family) {
			for _, protocol := range []model.Protocol{model.TCP, model.UDP} {
				for source, in := range []string{"cni0", "", "eth0"} {
					p := trace.Packet{To: to, Protocol: protocol, In: in}
					addr := [][2]netip.Addr{modeltest.PodSource, modeltest.NodeSource, modeltest.OutsideSource}[source][family]
					p.From = netip.AddrPortFrom(addr, 40000)
					p.Local = func(a netip.Addr) bool {
						return a == modeltest.NodeSource[family] || a == modeltest.SecondAddress[family]
					}
					want := expect(c, model.Packet{From: model.Source(source), SourceAddr: addr, To: to, Protocol: protocol,
						ToNode: c.Net.AllNodePorts && p.Local(to.Addr()) || slices.Contains(c.Net.NodePorts, to.Addr())}, clusterIPs)
					got, err := table.Trace(t.Context(), p)
					if err != nil {
						t.Fatalf("%v to %v: %v", p.From, to, err)
					}
					if fmt.Sprint(got) != fmt.Sprint(want) {
						t.Fatalf("%v to %v %v (%v): the kernel's rules say %+v, the model says %+v: %+v", p.From, to, protocol, in, got, want,
							c.State.Trace(model.Packet{From: model.Source(source), SourceAddr: addr, To: to, Protocol: protocol}))
					}
				}
			}
		}
	}
}

func expect(c *modeltest.Cluster, p model.Packet, clusterIPs map[netip.Addr]bool) trace.Ending {
	o := c.State.Trace(p)
	var out trace.Ending
	switch {
	case o.Port == nil && clusterIPs[p.To.Addr()]:
		out.Rejected = true
	case o.Port == nil:
		out.Dropped = slices.ContainsFunc(c.Net.ServiceCIDRs, func(r netip.Prefix) bool { return r.Contains(p.To.Addr()) })
	case o.Route.Action == model.Reject:
		out.Rejected = true
	case o.Route.Action == model.Drop:
		out.Dropped = true
	default:
		out.Masquerade = o.Route.Masquerade
		for _, e := range o.Endpoints {
			out.Endpoints = append(out.Endpoints, e.Addr)
		}
	}
	return out
}
