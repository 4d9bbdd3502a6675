package iptables

import (
	"fmt"

	"github.com/orlop/orlop/proxy/model"
)

const mangle = "mangle"

// canary is a chain that nobody uses: where it is gone, somebody has flushed the table.
const canary = "KUBE-PROXY-CANARY"

// jump leads from a chain of the kernel to one of ours.
type jump struct{ table, from, to, match string }

var jumps = []jump{
	{filter, "INPUT", "KUBE-PROXY-FIREWALL", isNew}, {filter, "OUTPUT", "KUBE-PROXY-FIREWALL", isNew}, {filter, "FORWARD", "KUBE-PROXY-FIREWALL", isNew},
	{filter, "INPUT", "KUBE-EXTERNAL-SERVICES", isNew}, {filter, "OUTPUT", "KUBE-EXTERNAL-SERVICES", isNew}, {filter, "FORWARD", "KUBE-EXTERNAL-SERVICES", isNew},
	{filter, "FORWARD", "KUBE-SERVICES", isNew}, {filter, "OUTPUT", "KUBE-SERVICES", isNew},
	{filter, "FORWARD", "KUBE-FORWARD", ""},
	{nat, "PREROUTING", "KUBE-SERVICES", ""}, {nat, "OUTPUT", "KUBE-SERVICES", ""}, {nat, "POSTROUTING", "KUBE-POSTROUTING", ""},
}

const isNew = "-m conntrack --ctstate NEW "

func (j jump) rule() string {
	return j.match + `-m comment --comment "kubernetes services" -j ` + j.to
}

// fixed are the chains that are there whatever Services there are.
func (t *table) fixed(e *edit) {
	mark := t.network.MasqueradeMark
	e.chains[nat]["KUBE-MARK-MASQ"] = []string{fmt.Sprintf("-j MARK --or-mark %#x", mark)}
	e.chains[nat]["KUBE-POSTROUTING"] = []string{
		fmt.Sprintf("-m mark ! --mark %#x/%#x -j RETURN", mark, mark),
		fmt.Sprintf("-j MARK --xor-mark %#x", mark), // a packet that comes by twice is masqueraded once
		"-j MASQUERADE --random-fully",
	}
	e.chains[filter]["KUBE-FORWARD"] = []string{
		fmt.Sprintf("-m mark --mark %#x/%#x -j ACCEPT", mark, mark),
		"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
	}
	if !t.network.TCPBeLiberal {
		// Sent on as it is, a packet that connection tracking can't place would reach a client with an address that it
		// never spoke to, and the client would end its connection.
		e.chains[filter]["KUBE-FORWARD"] = append([]string{"-m conntrack --ctstate INVALID -j DROP"}, e.chains[filter]["KUBE-FORWARD"]...)
	}
	for _, l := range []list{natNodePorts, filterServices, filterExternal, filterByFirewall} {
		e.dirty[l] = true
	}
	e.blocks = true
	for _, name := range []string{mangle, filter, nat} {
		e.chains[name][canary] = nil
	}
}

// check refuses what the rules can't say.
func check(n *model.Network) error {
	if n.MasqueradeMark == 0 || n.MasqueradeMark&(n.MasqueradeMark-1) != 0 {
		return fmt.Errorf("masquerade mark %#x is not a single bit", n.MasqueradeMark)
	}
	for _, f := range n.Families {
		if len(n.Local.Of(f)) > 1 {
			return fmt.Errorf("pods have the ranges %v; with iptables they may have one of each family", n.Local.Of(f))
		}
	}
	return nil
}
