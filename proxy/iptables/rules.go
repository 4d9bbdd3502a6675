package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"

	"github.com/orlop/orlop/proxy/model"
)

// describer writes the rules of one family.
type describer struct {
	family  model.Family
	network *model.Network
}

// described is what one port needs: chains of its own, and rules in chains that it shares with others.
type described struct {
	nat map[string][]string // chains of its own in table nat, with their rules
	// shared are its rules in chains of both tables; a port has few.
	shared []sharedRule
}

// sharedRule is a rule in a chain that holds rules of many ports. Their order among each other has no meaning.
type sharedRule struct {
	list list
	rule string
}

// list is a chain that holds rules of many ports. Those of table nat that lead to addresses are many chains, one for each
// block of addresses, so that neither a packet nor a change has to do with all Services.
type list struct {
	table, chain string
	block        netip.Prefix // of a chain of addresses
}

// The lists. The names are those that tools look for.
var (
	natNodePorts     = list{table: nat, chain: "KUBE-NODEPORTS"}
	filterServices   = list{table: filter, chain: "KUBE-SERVICES"}
	filterExternal   = list{table: filter, chain: "KUBE-EXTERNAL-SERVICES"}
	filterByFirewall = list{table: filter, chain: "KUBE-PROXY-FIREWALL"}
)

const (
	nat    = "nat"
	filter = "filter"
)

// blockOf is the list of an address: 256 addresses share one.
func blockOf(addr netip.Addr) list {
	block, err := addr.Prefix(addr.BitLen() - 8)
	if err != nil {
		panic(err) // an address has more than eight bits
	}
	return list{table: nat, chain: "KUBE-SVCS-" + hash(block.String()), block: block}
}

// hash is short enough for the 28 bytes that a chain's name may have, and the same that kube-proxy uses, so that a switch
// from one to the other replaces chains of the same name.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base32.StdEncoding.EncodeToString(sum[:])[:16]
}

func portHash(key model.PortKey) string { return hash(key.String() + key.Protocol.String()) }

func endpointChain(key model.PortKey, endpoint netip.AddrPort) string {
	return "KUBE-SEP-" + hash(key.String()+key.Protocol.String()+endpoint.String())
}

var setChains = [...]string{model.Cluster: "KUBE-SVC-", model.Local: "KUBE-SVL-"}

func (d describer) describe(port *model.Port) *described {
	out := &described{nat: map[string][]string{}}
	for _, set := range []model.Set{model.Cluster, model.Local} {
		if len(port.Endpoints(set)) > 0 {
			out.nat[setChains[set]+portHash(port.Key)] = d.balance(port, set)
		}
		for _, e := range port.Endpoints(set) {
			out.nat[endpointChain(port.Key, e.Addr)] = d.endpoint(port, e)
		}
	}
	for _, f := range port.Frontends {
		d.frontend(out, port, f)
	}
	return out
}

// balance has clients that are known go on to their endpoint, and takes one at random for others: rule i of n is taken
// with a probability of 1/(n-i), so that each is with 1/n.
func (d describer) balance(port *model.Port, set model.Set) []string {
	out := d.clusterIPMasquerade(port, set)
	endpoints := port.Endpoints(set)
	if port.Affinity != 0 {
		for _, e := range endpoints {
			chain := endpointChain(port.Key, e.Addr)
			out = append(out, fmt.Sprintf("-m recent --name %s --rcheck --seconds %d --reap -j %s", chain, int(port.Affinity.Seconds()), chain))
		}
	}
	for i, e := range endpoints {
		random := ""
		if left := len(endpoints) - i; left > 1 {
			random = fmt.Sprintf("-m statistic --mode random --probability %.11f ", 1/float64(left))
		}
		out = append(out, random+"-j "+endpointChain(port.Key, e.Addr))
	}
	return out
}

// clusterIPMasquerade marks what is sent to the ClusterIP from elsewhere than a pod, if it is to be masqueraded. The chain
// is also reached from other addresses, whose chains mark for themselves.
func (d describer) clusterIPMasquerade(port *model.Port, set model.Set) []string {
	var out []string
	for _, f := range port.Frontends {
		route := f.Routes[model.FromOutside]
		if f.Kind != model.ClusterIP || route.Action != model.Balance || route.Set != set || !route.Masquerade {
			continue
		}
		who := ""
		if !f.Routes[model.FromPod].Masquerade {
			who = d.fromPod("! ") + " "
		}
		out = append(out, d.to(f, port.Key.Protocol)+" "+who+"-j KUBE-MARK-MASQ")
	}
	return out
}

// fromPod matches packets of pods, or with "! " all others.
func (d describer) fromPod(not string) string {
	local := d.network.Local
	switch {
	case local.Bridge != "":
		return not + "-i " + local.Bridge
	case local.InterfacePrefix != "":
		return not + "-i " + local.InterfacePrefix + "+"
	}
	return not + "-s " + local.Of(d.family)[0].String() // check has seen that there is one
}

func (d describer) to(f model.Frontend, protocol model.Protocol) string {
	return fmt.Sprintf("-d %s -p %s -m %s --dport %d", netip.PrefixFrom(f.Addr, f.Addr.BitLen()), protocol, protocol, f.Port)
}

// endpoint masquerades a packet of the endpoint to itself, which it would take for a lost one otherwise.
func (d describer) endpoint(port *model.Port, e model.Endpoint) []string {
	remember := ""
	if port.Affinity != 0 {
		remember = fmt.Sprintf("-m recent --name %s --set ", endpointChain(port.Key, e.Addr))
	}
	addr := e.Addr.Addr()
	return []string{
		fmt.Sprintf("-s %s -j KUBE-MARK-MASQ", netip.PrefixFrom(addr, addr.BitLen())),
		fmt.Sprintf("-p %s -m %s %s-j DNAT --to-destination %s", port.Key.Protocol, port.Key.Protocol, remember, e.Addr),
	}
}

func (d describer) frontend(out *described, port *model.Port, f model.Frontend) {
	share := func(l list, format string, args ...any) {
		out.shared = append(out.shared, sharedRule{l, comment(port.Key.String()) + fmt.Sprintf(format, args...)})
	}
	at := d.match(f, port.Key.Protocol)
	refusals, target := filterServices, ""
	if f.Kind != model.ClusterIP {
		refusals = filterExternal
	}
	if f.Kind == model.ClusterIP {
		target = setChains[f.Routes[model.FromOutside].Set] + portHash(port.Key)
	} else if balances(f.Routes) {
		target = "KUBE-EXT-" + portHash(port.Key)
		out.nat[target] = d.external(port, f.Routes)
	}
	if len(f.Sources) > 0 {
		d.firewall(share, f, at)
		if balances(f.Routes) {
			allowed := "KUBE-FW-" + portHash(port.Key)
			out.nat[allowed] = nil
			for _, source := range f.Sources {
				out.nat[allowed] = append(out.nat[allowed], fmt.Sprintf("-s %s -j %s", source, target))
			}
			target = allowed
		}
	}
	if balances(f.Routes) {
		share(d.entries(f), "%s -j %s", at, target)
	}
	if action := refusal(f.Routes); action != "" && len(f.Sources) == 0 {
		share(refusals, "%s -j %s", at, action)
	}
}

// firewall drops what is for a LoadBalancer's address and was not let through to an endpoint, after it has rejected what
// would have been if there were any. The rules of a port stay in their order.
func (d describer) firewall(share func(list, string, ...any), f model.Frontend, at string) {
	if refusal(f.Routes) == reject {
		for _, source := range f.Sources {
			share(filterByFirewall, "-s %s %s -j %s", source, at, reject)
		}
	}
	share(filterByFirewall, "%s -j DROP", at)
}

func (d describer) match(f model.Frontend, protocol model.Protocol) string {
	if f.Kind == model.NodePort {
		return fmt.Sprintf("-p %s -m %s --dport %d", protocol, protocol, f.Port)
	}
	return d.to(f, protocol)
}

func (d describer) entries(f model.Frontend) list {
	if f.Kind == model.NodePort {
		return natNodePorts
	}
	return blockOf(f.Addr)
}

const reject = "REJECT"

func refusal(routes model.Routes) string {
	for _, r := range routes {
		switch r.Action {
		case model.Reject:
			return reject
		case model.Drop:
			return "DROP"
		}
	}
	return ""
}

func balances(routes model.Routes) bool {
	for _, r := range routes {
		if r.Action == model.Balance {
			return true
		}
	}
	return false
}

// external is the chain of all addresses but the ClusterIP: rules for each source in the order of model.Source. What is
// not balanced falls through, and the filter chains refuse it.
func (d describer) external(port *model.Port, routes model.Routes) []string {
	var out []string
	add := func(match string, r model.Route) {
		if r.Masquerade {
			out = append(out, strings.TrimSpace(match+" -j KUBE-MARK-MASQ"))
		}
		target := "RETURN"
		if r.Action == model.Balance {
			target = setChains[r.Set] + portHash(port.Key)
		}
		out = append(out, strings.TrimSpace(match+" -j "+target))
	}
	pod, node, outside := routes[model.FromPod], routes[model.FromNode], routes[model.FromOutside]
	if pod != node || pod != outside {
		if d.network.Local.Detects(d.family) {
			add(d.fromPod(""), pod)
		}
	}
	if node != outside {
		add("-m addrtype --src-type LOCAL", node)
	}
	add("", outside)
	return out
}

// maxComment is what the comment match holds, without its zero byte.
const maxComment = 255

func comment(text string) string {
	return fmt.Sprintf("-m comment --comment %q ", text[:min(len(text), maxComment)])
}
