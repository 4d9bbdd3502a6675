package ipvs

import (
	"context"
	"fmt"
	"slices"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/xtables"
)

// maxSetName is what the kernel takes, without a zero byte: IPSET_MAXNAMELEN.
const maxSetName = 31

// setName is a set's name in a family: both have sets of the same kinds.
func setName(family model.Family, set string) string {
	name := "KUBE-" + set
	if family == model.IPv6 {
		name = "KUBE-6-" + set
	}
	return name[:min(len(name), maxSetName)]
}

// The chains that only this mode has.
const (
	ranges    = "KUBE-SOURCE-RANGES-FIREWALL"
	outsiders = "KUBE-NO-LOCAL"
	rejects   = "KUBE-IPVS-FILTER"
	// nodePortChain is where kube-proxy lets health checks pass.
	nodePortChain = "KUBE-NODE-PORT"
)

// hooks lead from the kernel's chains to ours, the last one first. The kernel sends packets to destinations at LOCAL_IN and,
// of the node's own packets, at LOCAL_OUT before table filter: so what is to be dropped is dropped in table mangle, and what
// nobody serves is rejected where it comes in.
func hooks() []xtables.Hook {
	return []xtables.Hook{
		{Table: xtables.Mangle, Chain: "PREROUTING", Rule: "-j " + xtables.Firewall},
		{Table: xtables.Mangle, Chain: "OUTPUT", Rule: "-j " + xtables.Firewall},
		{Table: xtables.NAT, Chain: "PREROUTING", Rule: "-j " + xtables.Services},
		{Table: xtables.NAT, Chain: "OUTPUT", Rule: "-j " + xtables.Services},
		{Table: xtables.NAT, Chain: "POSTROUTING", Rule: "-j " + xtables.Postrouting},
		{Table: xtables.Filter, Chain: "INPUT", Rule: "-j " + rejects},
		{Table: xtables.Filter, Chain: "INPUT", Rule: "-j " + nodePortChain}, // before what rejects all of a load balancer's other ports
		{Table: xtables.Filter, Chain: "FORWARD", Rule: "-j " + xtables.Forward},
	}
}

// rules are all that a family has, whatever Services there are. Packets for table filter's chain of what is rejected are
// those that IPVS has not taken.
func rules(family model.Family, n *model.Network) []xtables.Section {
	mark := fmt.Sprintf("%#x", n.MasqueradeMark)
	rejected := []string{isNew + match(family, ipvsIPs, "dst") + " -j REJECT"}
	for _, set := range []string{clusterIPs, externalIPs, externalIPsLocal, loadBalancers, loadBalancersLocal} {
		rejected = slices.Insert(rejected, 0, match(family, set, "dst,dst")+" -j RETURN")
	}
	rejected = slices.Insert(rejected, 0, isNew+match(family, nobody, "dst,dst")+" -j REJECT")
	return []xtables.Section{
		{Table: xtables.Mangle, Chains: map[string][]string{
			xtables.Canary: nil,
			xtables.Firewall: {
				isNew + match(family, firewalled, "dst,dst") + " -j " + ranges,
				isNew + match(family, noLocalAtAll, "dst,dst") + " -j DROP",
				isNew + match(family, noLocal, "dst,dst") + " -j " + outsiders,
			},
			ranges:    {match(family, firewallSources, "dst,dst,src") + " -j RETURN", "-j DROP"},
			outsiders: append(leadEach(xtables.PodMatches(family, n.Local), "RETURN"), fromNode+"-j RETURN", "-j DROP"),
		}},
		{Table: xtables.Filter, Chains: map[string][]string{
			xtables.Canary:  nil,
			rejects:         rejected,
			nodePortChain:   {"-p tcp " + match(family, healthChecks, "dst") + " -j ACCEPT"},
			xtables.Forward: {"-m mark --mark " + mark + "/" + mark + " -j ACCEPT", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"},
		}},
		{Table: xtables.NAT, Chains: map[string][]string{
			xtables.Canary:         nil,
			xtables.Services:       append(masqueraded(family, n), accepted(family)...),
			xtables.MarkNotPod:     append(leadEach(xtables.PodMatches(family, n.Local), "RETURN"), "-j "+xtables.MarkMasquerade),
			xtables.MarkMasquerade: {"-j MARK --or-mark " + mark},
			xtables.Postrouting: {
				match(family, loopBack, "dst,dst,src") + " -j MASQUERADE --random-fully",
				"-m mark ! --mark " + mark + "/" + mark + " -j RETURN", "-j MARK --xor-mark " + mark, "-j MASQUERADE --random-fully",
			},
		}},
	}
}

const (
	isNew    = "-m conntrack --ctstate NEW "
	fromNode = "-m addrtype --src-type LOCAL "
)

func match(family model.Family, set, directions string) string {
	return fmt.Sprintf("-m set --match-set %s %s", setName(family, set), directions)
}

func leadEach(matches []string, to string) []string {
	var out []string
	for _, m := range matches {
		out = append(out, m+" -j "+to)
	}
	return out
}

// masqueraded are the rules that say whose source is to be the node.
func masqueraded(family model.Family, n *model.Network) []string {
	var out []string
	switch {
	case n.MasqueradeAll:
		out = append(out, match(family, clusterIPs, "dst,dst")+" -j "+xtables.MarkMasquerade)
	case len(xtables.PodMatches(family, n.Local)) > 0:
		out = append(out, match(family, clusterIPs, "dst,dst")+" -j "+xtables.MarkNotPod)
	default: // the node's own packets have the ClusterIP as their source, as it is an address of the node
		out = append(out, match(family, clusterIPs, "src,dst")+" -j "+xtables.MarkMasquerade)
	}
	for _, set := range []string{externalIPs, loadBalancers, nodePorts} {
		out = append(out, match(family, set, "dst,dst")+" -j "+xtables.MarkMasquerade)
	}
	for _, set := range []string{externalIPsLocal, loadBalancersLocal, nodePortsLocal} {
		out = append(out, fromNode+match(family, set, "dst,dst")+" -j "+xtables.MarkMasquerade)
	}
	return out
}

// accepted are the rules that keep others of table nat from packets to Services: their addresses are the node's, so that
// the rule of a pod's hostPort would take packets to that port of every Service.
func accepted(family model.Family) []string {
	var out []string
	for _, set := range []string{clusterIPs, externalIPs, externalIPsLocal, loadBalancers, loadBalancersLocal} {
		out = append(out, match(family, set, "dst,dst")+" -j ACCEPT")
	}
	return out
}

// setRules sets all rules of a family, and drops those that another mode left.
func setRules(ctx context.Context, p *xtables.Program, n *model.Network) error {
	have, err := p.Existing(ctx)
	if err != nil {
		return err
	}
	wanted := map[xtables.ChainID]bool{}
	all := rules(p.Family, n)
	for i := range all {
		all[i].Other = have.Fix(all[i].Table, hooks())
		for chain := range all[i].Chains {
			wanted[xtables.ChainID{Table: all[i].Table, Name: chain}] = true
		}
	}
	if err := p.Set(ctx, all...); err != nil {
		return err
	}
	return p.Drop(ctx, have.Stale(func(id xtables.ChainID) bool { return wanted[id] }))
}
