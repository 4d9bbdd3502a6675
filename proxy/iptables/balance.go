package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/xtables"
)

// balance is the chain that takes an endpoint of a list: the one that a client had before, or any.
func (d *described) balance(set model.Set) error {
	if !d.leadsTo(set) {
		return nil
	}
	endpoints := d.port.Endpoints(set)
	if len(endpoints) == 0 {
		return fmt.Errorf("packets are to be balanced over the list %s, which is empty", set)
	}
	rules, err := d.masquerade(set)
	if err != nil {
		return err
	}
	key := d.port.Key
	for _, e := range endpoints {
		if d.port.Affinity != 0 {
			chain := endpointChain(key, e.Addr)
			rules = append(rules, join(d.towards(e), fmt.Sprintf("-m recent --rcheck --seconds %d --reap --name %s --mask %s --rsource -j %s",
				affinitySeconds(d.port.Affinity), chain, xtables.ClientMasks[d.family.Family], chain)))
		}
	}
	for i, e := range endpoints {
		choice := ""
		if left := len(endpoints) - i; left > 1 {
			choice = fmt.Sprintf("-m statistic --mode random --probability %.10f", 1/float64(left))
		}
		rules = append(rules, join(d.towards(e), choice, "-j", endpointChain(key, e.Addr)))
	}
	d.own(setChain(set, key), rules)
	return nil
}

// affinitySeconds is at least one: with none the kernel would take no heed of time.
func affinitySeconds(d time.Duration) int64 { return max(1, int64((d+time.Second-1)/time.Second)) }

func (d *described) towards(e model.Endpoint) string {
	return comment(d.port.Key.String() + " -> " + e.Addr.String())
}

// leadsTo tells whether a route leads to a list.
func (d *described) leadsTo(set model.Set) bool {
	return slices.ContainsFunc(d.port.Frontends, func(f model.Frontend) bool {
		return slices.ContainsFunc(f.Routes[:], func(r model.Route) bool { return r.Action == model.Balance && r.Set == set })
	})
}

// masquerade begins a list's chain: packets to a ClusterIP go there at once, and are marked there.
func (d *described) masquerade(set model.Set) ([]string, error) {
	var out []string
	for _, f := range d.port.Frontends {
		if f.Kind != model.ClusterIP {
			continue
		}
		pod, node, outside := f.Routes[model.FromPod], f.Routes[model.FromNode], f.Routes[model.FromOutside]
		known := d.network.Local.Detects(d.family.Family)
		if node != outside || known && (pod.Action != node.Action || pod.Set != node.Set || pod.Masquerade && !node.Masquerade) {
			return nil, fmt.Errorf("%s: packets are treated by where they are from in a way that this backend does not know", f.Kind)
		}
		if node.Action != model.Balance || node.Set != set || !node.Masquerade {
			continue
		}
		to := d.toFrontend(f, kindText[f.Kind])
		if known && !pod.Masquerade {
			out = append(out, d.notPod(to))
		} else {
			out = append(out, join(to, "-j", xtables.MarkMasquerade))
		}
	}
	return out, nil
}

// notPod marks packets that are no pod's.
func (d *described) notPod(to string) string {
	matches := xtables.PodMatches(d.family.Family, d.network.Local)
	if len(matches) > 1 { // a rule has one source
		return join(to, "-j", xtables.MarkNotPod)
	}
	return join("!", matches[0], to, "-j", xtables.MarkMasquerade)
}

// endpoints have a chain each.
func (d *described) endpoints() {
	known := map[netip.AddrPort]bool{}
	for _, set := range []model.Set{model.Cluster, model.Local} {
		for _, e := range d.port.Endpoints(set) {
			if d.leadsTo(set) && !known[e.Addr] {
				known[e.Addr] = true
				d.own(endpointChain(d.port.Key, e.Addr), d.endpointRules(e))
			}
		}
	}
}

// endpointRules gives a packet the endpoint's address. One that the endpoint itself sent must be masqueraded: it would
// take the answer for a lost one otherwise. Endpoints of other nodes reach themselves through their own node.
func (d *described) endpointRules(e model.Endpoint) []string {
	var out []string
	text := comment(d.port.Key.String())
	if e.OnNode {
		out = append(out, join("-s", host(e.Addr.Addr()), text, "-j", xtables.MarkMasquerade))
	}
	protocol, recent := d.port.Key.Protocol.String(), ""
	if d.port.Affinity != 0 {
		recent = fmt.Sprintf("-m recent --set --name %s --mask %s --rsource", endpointChain(d.port.Key, e.Addr), xtables.ClientMasks[d.family.Family])
	}
	return append(out, join("-p", protocol, text, recent, "-m", protocol, "-j DNAT --to-destination", e.Addr.String()))
}
