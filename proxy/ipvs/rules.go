package ipvs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

var programs = map[model.Family]string{model.IPv4: "iptables", model.IPv6: "ip6tables"}

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

// hooks lead from the kernel's chains to ours. The kernel sends packets to destinations at LOCAL_IN and, of the node's own
// packets, at LOCAL_OUT before table filter: so what is to be dropped is dropped in table mangle, and what nobody serves is
// rejected where it comes in.
var hooks = []struct{ table, from, to string }{
	{"mangle", "PREROUTING", "KUBE-PROXY-FIREWALL"}, {"mangle", "OUTPUT", "KUBE-PROXY-FIREWALL"},
	{"nat", "PREROUTING", "KUBE-SERVICES"}, {"nat", "OUTPUT", "KUBE-SERVICES"}, {"nat", "POSTROUTING", "KUBE-POSTROUTING"},
	{"filter", "INPUT", "KUBE-IPVS-FILTER"}, {"filter", "FORWARD", "KUBE-FORWARD"},
}

// rules are all that a family has, whatever Services there are.
func rules(family model.Family, n *model.Network) map[string]map[string][]string {
	match := func(set, directions string) string {
		return fmt.Sprintf("-m set --match-set %s %s", setName(family, set), directions)
	}
	const isNew = "-m conntrack --ctstate NEW "
	fromNode := "-m addrtype --src-type LOCAL "
	notPod := notFromPod(family, n)
	var services []string
	switch {
	case n.MasqueradeAll:
		services = append(services, match(clusterIPs, "dst,dst")+" -j KUBE-MARK-MASQ")
	case notPod != "":
		services = append(services, notPod+match(clusterIPs, "dst,dst")+" -j KUBE-MARK-MASQ")
	default: // the node's own packets have the ClusterIP as their source, as it is an address of the node
		services = append(services, match(clusterIPs, "src,dst")+" -j KUBE-MARK-MASQ")
	}
	for _, set := range []string{externalIPs, loadBalancers, nodePorts} {
		services = append(services, match(set, "dst,dst")+" -j KUBE-MARK-MASQ")
	}
	for _, set := range []string{externalIPsLocal, loadBalancersLocal, nodePortsLocal} {
		services = append(services, fromNode+match(set, "dst,dst")+" -j KUBE-MARK-MASQ")
	}
	firewall := []string{
		isNew + match(firewalled, "dst,dst") + " -j KUBE-SOURCE-RANGES-FIREWALL",
		isNew + match(noLocalAtAll, "dst,dst") + " -j DROP",
		isNew + match(noLocal, "dst,dst") + " -j KUBE-NO-LOCAL",
	}
	noLocalRules := []string{fromNode + "-j RETURN", "-j DROP"}
	if pod := fromPod(family, n); pod != "" {
		noLocalRules = append([]string{pod + "-j RETURN"}, noLocalRules...)
	}
	var served []string
	for _, set := range []string{clusterIPs, externalIPs, externalIPsLocal, loadBalancers, loadBalancersLocal} {
		served = append(served, match(set, "dst,dst")+" -j RETURN")
	}
	mark := fmt.Sprintf("%#x", n.MasqueradeMark)
	return map[string]map[string][]string{
		"mangle": {
			"KUBE-PROXY-FIREWALL":         firewall,
			"KUBE-SOURCE-RANGES-FIREWALL": {match(firewallSources, "dst,dst,src") + " -j RETURN", "-j DROP"},
			"KUBE-NO-LOCAL":               noLocalRules,
		},
		"nat": {
			"KUBE-SERVICES":  services,
			"KUBE-MARK-MASQ": {"-j MARK --or-mark " + mark},
			"KUBE-POSTROUTING": {
				match(loopBack, "dst,dst,src") + " -j MASQUERADE --random-fully",
				"-m mark ! --mark " + mark + "/" + mark + " -j RETURN", "-j MARK --xor-mark " + mark, "-j MASQUERADE --random-fully",
			},
		},
		"filter": {
			"KUBE-IPVS-FILTER": append(served, isNew+match(ipvsIPs, "dst")+" -j REJECT"),
			"KUBE-FORWARD":     {"-m mark --mark " + mark + "/" + mark + " -j ACCEPT", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"},
		},
	}
}

// fromPod matches packets of pods; empty where they can't be told.
func fromPod(family model.Family, n *model.Network) string { return local(family, n, "") }

func notFromPod(family model.Family, n *model.Network) string { return local(family, n, "! ") }

func local(family model.Family, n *model.Network, not string) string {
	ranges := n.Local.Of(family)
	switch {
	case n.Local.Bridge != "":
		return not + "-i " + n.Local.Bridge + " "
	case n.Local.InterfacePrefix != "":
		return not + "-i " + n.Local.InterfacePrefix + "+ "
	case len(ranges) > 0:
		return not + "-s " + ranges[0].String() + " "
	}
	return ""
}

func restoreText(tables map[string]map[string][]string) []byte {
	var b bytes.Buffer
	for _, table := range slices.Sorted(maps.Keys(tables)) {
		fmt.Fprintf(&b, "*%s\n", table)
		chains := slices.Sorted(maps.Keys(tables[table]))
		for _, c := range chains {
			fmt.Fprintf(&b, ":%s - [0:0]\n", c)
		}
		for _, c := range chains {
			for _, r := range tables[table][c] {
				fmt.Fprintf(&b, "-A %s %s\n", c, r)
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.Bytes()
}

// setRules makes the chains and what leads to them.
func setRules(ctx context.Context, family model.Family, n *model.Network) error {
	program := programs[family]
	if err := run(ctx, restoreText(rules(family, n)), program+"-restore", "-w", "5", "--noflush", "--counters"); err != nil {
		return err
	}
	for _, h := range hooks {
		if run(ctx, nil, program, "-w", "5", "-t", h.table, "-C", h.from, "-j", h.to) == nil {
			continue
		}
		if err := run(ctx, nil, program, "-w", "5", "-t", h.table, "-I", h.from, "-j", h.to); err != nil {
			return err
		}
	}
	return nil
}

// dropRules removes them.
func dropRules(ctx context.Context, family model.Family) error {
	program := programs[family]
	var errs []error
	gone := map[string][]string{}
	for table, chains := range rules(family, &model.Network{MasqueradeMark: 1}) {
		for chain := range chains {
			if run(ctx, nil, program, "-w", "5", "-t", table, "-S", chain) == nil {
				gone[table] = append(gone[table], chain)
			}
		}
	}
	for _, h := range hooks {
		for slices.Contains(gone[h.table], h.to) && run(ctx, nil, program, "-w", "5", "-t", h.table, "-D", h.from, "-j", h.to) == nil {
		}
	}
	for table, chains := range gone {
		var b bytes.Buffer
		fmt.Fprintf(&b, "*%s\n", table)
		for _, c := range chains {
			fmt.Fprintf(&b, ":%s - [0:0]\n", c)
		}
		for _, c := range chains {
			fmt.Fprintf(&b, "-X %s\n", c)
		}
		b.WriteString("COMMIT\n")
		errs = append(errs, run(ctx, b.Bytes(), program+"-restore", "-w", "5", "--noflush"))
	}
	return errors.Join(errs...)
}

// runTimeout is for a program that waits for others which change rules.
const runTimeout = 2 * time.Minute

func run(ctx context.Context, input []byte, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = bytes.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}
