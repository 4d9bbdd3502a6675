package iptables

import (
	"fmt"

	"github.com/orlop/orlop/proxy/model"
)

// hook is a rule of ours in a chain of the kernel's, which comes before all others there.
type hook struct{ table, chain, rule string }

// hooks are in the order in which they are inserted: the last one comes first.
func hooks() []hook {
	portals, external, fence := "kubernetes service portals", "kubernetes externally-visible service portals", "kubernetes load balancer firewall"
	isNew := func(text, chain string) string { return "-m conntrack --ctstate NEW " + comment(text) + " -j " + chain }
	return []hook{
		{filter, "INPUT", isNew(external, externalServices)},
		{filter, "FORWARD", isNew(external, externalServices)},
		{filter, "OUTPUT", isNew(external, externalServices)},
		{filter, "FORWARD", isNew(portals, services)},
		{filter, "OUTPUT", isNew(portals, services)},
		{filter, "FORWARD", comment("kubernetes forwarding rules") + " -j " + forward},
		{filter, "INPUT", isNew(fence, firewall)},
		{filter, "FORWARD", isNew(fence, firewall)},
		{filter, "OUTPUT", isNew(fence, firewall)},
		{nat, "PREROUTING", comment(portals) + " -j " + services},
		{nat, "OUTPUT", comment(portals) + " -j " + services},
		{nat, "POSTROUTING", comment("kubernetes postrouting rules") + " -j " + postrouting},
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
		{table: mangle, chain: canary}, {table: nat, chain: canary}, {table: filter, chain: canary},
		{table: nat, chain: services}, {table: nat, chain: nodePorts},
		{table: filter, chain: services}, {table: filter, chain: externalServices}, {table: filter, chain: nodePorts},
		{table: filter, chain: firewall},
		{table: nat, chain: markMasquerade, rules: "-j MARK --or-mark " + bit},
		// The mark is taken away, lest a packet that passes once more be masqueraded again.
		{table: nat, chain: postrouting, rules: fmt.Sprintf("-m mark ! --mark %s/%s -j RETURN\n-j MARK --xor-mark %s\n%s -j MASQUERADE --random-fully",
			bit, bit, bit, comment("kubernetes service traffic requiring SNAT"))},
		// What is to be masqueraded may pass even if the policy is to forward nothing, and so may the answers.
		{table: filter, chain: forward, rank: 1, rules: fmt.Sprintf("%s -m mark --mark %s/%s -j ACCEPT\n%s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			comment("kubernetes forwarding rules"), bit, bit, comment("kubernetes forwarding conntrack rule"))},
	}
	if !n.TCPBeLiberal {
		// A packet that connection tracking can't place would reach the client with the endpoint's address, and be reset.
		out = append(out, part{table: filter, chain: forward, rules: "-m conntrack --ctstate INVALID -j DROP"})
	}
	if localhost(f, n) {
		// With route_localnet, others on the link could reach what listens on the loopback address.
		out = append(out, part{table: filter, chain: kubeletFirewall, rules: "! -s 127.0.0.0/8 -d 127.0.0.0/8 " +
			comment("block incoming localnet connections") + " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"})
	}
	if pods := f.podMatches(n.Local); len(pods) > 1 {
		for _, match := range pods {
			out = append(out, part{table: nat, chain: markNotPod, rules: match + " -j RETURN"})
		}
		out = append(out, part{table: nat, chain: markNotPod, rank: 1, rules: "-j " + markMasquerade})
	}
	for _, match := range f.nodePortMatches(n) {
		// Addresses of Services go before.
		text := comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
		out = append(out, part{table: nat, chain: services, rank: 1, rules: join(match, text, "-j", nodePorts)},
			part{table: filter, chain: externalServices, rank: 1, rules: join(match, text, "-j", nodePorts)})
	}
	return out
}
