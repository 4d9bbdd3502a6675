package iptables

import (
	"fmt"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/xtables"
)

// hooks are in the order in which they are inserted: the last one comes first.
func hooks() []xtables.Hook {
	portals, external, fence := "kubernetes service portals", "kubernetes externally-visible service portals", "kubernetes load balancer firewall"
	isNew := func(text, chain string) string { return "-m conntrack --ctstate NEW " + comment(text) + " -j " + chain }
	return []xtables.Hook{
		{Table: xtables.Filter, Chain: "INPUT", Rule: isNew(external, xtables.External)},
		{Table: xtables.Filter, Chain: "FORWARD", Rule: isNew(external, xtables.External)},
		{Table: xtables.Filter, Chain: "OUTPUT", Rule: isNew(external, xtables.External)},
		{Table: xtables.Filter, Chain: "FORWARD", Rule: isNew(portals, xtables.Services)},
		{Table: xtables.Filter, Chain: "OUTPUT", Rule: isNew(portals, xtables.Services)},
		{Table: xtables.Filter, Chain: "FORWARD", Rule: comment("kubernetes forwarding rules") + " -j " + xtables.Forward},
		{Table: xtables.Filter, Chain: "INPUT", Rule: comment("kubernetes health check service ports") + " -j " + xtables.NodePorts},
		{Table: xtables.Filter, Chain: "INPUT", Rule: isNew(fence, xtables.Firewall)},
		{Table: xtables.Filter, Chain: "FORWARD", Rule: isNew(fence, xtables.Firewall)},
		{Table: xtables.Filter, Chain: "OUTPUT", Rule: isNew(fence, xtables.Firewall)},
		{Table: xtables.NAT, Chain: "PREROUTING", Rule: comment(portals) + " -j " + xtables.Services},
		{Table: xtables.NAT, Chain: "OUTPUT", Rule: comment(portals) + " -j " + xtables.Services},
		{Table: xtables.NAT, Chain: "POSTROUTING", Rule: comment("kubernetes postrouting rules") + " -j " + xtables.Postrouting},
	}
}

// localhost tells whether NodePorts are served on the loopback address: see route_localnet in ip-sysctl.
func localhost(f *family, n *model.Network) bool {
	if f.Family != model.IPv4 || !n.LocalhostNodePorts {
		return false
	}
	if n.AllNodePorts {
		return true
	}
	for _, addr := range n.NodePorts {
		if addr.Is4() && addr.IsLoopback() {
			return true
		}
	}
	return false
}

// fixed are the parts that do not depend on Services. Roots of trees are there even if nothing is below them.
func fixed(f *family, n *model.Network) []part {
	bit := fmt.Sprintf("%#x", n.MasqueradeMark)
	out := []part{
		{table: xtables.Mangle, chain: xtables.Canary}, {table: xtables.NAT, chain: xtables.Canary}, {table: xtables.Filter, chain: xtables.Canary},
		{table: xtables.NAT, chain: xtables.Services}, {table: xtables.NAT, chain: xtables.NodePorts},
		{table: xtables.Filter, chain: xtables.Services}, {table: xtables.Filter, chain: xtables.External}, {table: xtables.Filter, chain: xtables.NodePorts},
		{table: xtables.Filter, chain: xtables.NodePortsDeny},
		{table: xtables.Filter, chain: xtables.Firewall},
		{table: xtables.NAT, chain: xtables.MarkMasquerade, rules: "-j MARK --or-mark " + bit},
		// The mark is taken away, lest a packet that passes once more be masqueraded again.
		{table: xtables.NAT, chain: xtables.Postrouting, rules: fmt.Sprintf("-m mark ! --mark %s/%s -j RETURN\n-j MARK --xor-mark %s\n%s -j MASQUERADE --random-fully",
			bit, bit, bit, comment("kubernetes service traffic requiring SNAT"))},
		// What is to be masqueraded may pass even if the policy is to forward nothing, and so may the answers.
		{table: xtables.Filter, chain: xtables.Forward, rank: 1, rules: fmt.Sprintf("%s -m mark --mark %s/%s -j ACCEPT\n%s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			comment("kubernetes forwarding rules"), bit, bit, comment("kubernetes forwarding conntrack rule"))},
	}
	if !n.TCPBeLiberal {
		// A packet that connection tracking can't place would reach the client with the endpoint's address, and be reset.
		out = append(out, part{table: xtables.Filter, chain: xtables.Forward, rules: "-m conntrack --ctstate INVALID -j DROP"})
	}
	if localhost(f, n) {
		// With route_localnet, others on the link could reach what listens on the loopback address.
		out = append(out, part{table: xtables.Filter, chain: xtables.KubeletFirewall, rules: "! -s 127.0.0.0/8 -d 127.0.0.0/8 " +
			comment("block incoming localnet connections") + " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"})
	}
	if pods := xtables.PodMatches(f.Family, n.Local); len(pods) > 1 {
		for _, match := range pods {
			out = append(out, part{table: xtables.NAT, chain: xtables.MarkNotPod, rules: match + " -j RETURN"})
		}
		out = append(out, part{table: xtables.NAT, chain: xtables.MarkNotPod, rank: 1, rules: "-j " + xtables.MarkMasquerade})
	}
	for _, match := range f.nodePortMatches(n) {
		// Addresses of Services go before.
		text := comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
		out = append(out, part{table: xtables.NAT, chain: xtables.Services, rank: 1, rules: join(match, text, "-j", xtables.NodePorts)},
			part{table: xtables.Filter, chain: xtables.External, rank: 1, rules: join(match, text, "-j", xtables.NodePortsDeny)})
	}
	return out
}
