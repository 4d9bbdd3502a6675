package xtables

import (
	"slices"
	"strings"
)

// The tables in which there are rules of ours.
const (
	Mangle = "mangle"
	Filter = "filter"
	NAT    = "nat"
)

// Tables is in the order in which they are changed.
var Tables = []string{Mangle, Filter, NAT}

// Builtin are the kernel's chains in which kube-proxy or we have rules.
var Builtin = map[string][]string{
	Filter: {"INPUT", "FORWARD", "OUTPUT"},
	NAT:    {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
	Mangle: {"PREROUTING", "OUTPUT"},
}

// Names of chains that the modes share. They are those that kube-proxy gave them, which other programs and people look for.
const (
	Services  = "KUBE-SERVICES"
	NodePorts = "KUBE-NODEPORTS"
	// NodePortsDeny is below the chain for external addresses, in table filter.
	NodePortsDeny  = "KUBE-NODEPORTS-DENY"
	External       = "KUBE-EXTERNAL-SERVICES"
	Firewall       = "KUBE-PROXY-FIREWALL"
	Forward        = "KUBE-FORWARD"
	Postrouting    = "KUBE-POSTROUTING"
	MarkMasquerade = "KUBE-MARK-MASQ"
	// MarkNotPod is of ours alone, and of those who have several ranges of pods in one family.
	MarkNotPod = "KUBE-MARK-NOT-POD"
	// Canary is there as long as nobody flushes all.
	Canary = "KUBE-PROXY-CANARY"
	// KubeletFirewall is the kubelet's too: both make the same rule, and neither removes it.
	KubeletFirewall = "KUBE-FIREWALL"
)

// trees are the chains of many Services, in mode iptables: others, whose names begin with theirs, are branches.
var trees = []string{Services, NodePorts, External, Firewall}

// ofPorts are how the names of the chains of a single port begin, in the order in which they lead to one another.
var ofPorts = [][]string{{"KUBE-FW-"}, {"KUBE-EXT-"}, {"KUBE-SVC-", "KUBE-SVL-"}, {"KUBE-SEP-"}}

// others are the remaining chains of a kube-proxy or of ours, in any mode.
var others = []string{
	Forward, Postrouting, MarkMasquerade, Canary, MarkNotPod,
	"KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER", "KUBE-NO-LOCAL", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-LOAD-BALANCER", "KUBE-NODE-PORT",
}

// IsOurs tells whether we or a kube-proxy made a chain, in whatever mode, and nobody else.
func IsOurs(chain string) bool {
	return slices.Contains(others, chain) || Level(chain) > 0 || isTree(chain)
}

// Level is greater for chains to which others lead, and 0 for those that are not of a single port.
func Level(chain string) int {
	for i, prefixes := range ofPorts {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(chain, p) }) {
			return i + 1
		}
	}
	return 0
}

func isTree(chain string) bool {
	return slices.ContainsFunc(trees, func(root string) bool { return chain == root || strings.HasPrefix(chain, root+"-") })
}
