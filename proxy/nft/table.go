package nft

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// tableName is that of kube-proxy, which says of it that nobody else may edit it: tools look for it, and a node that
// changes from one to the other has its table replaced.
const tableName = "kube-proxy"

// dnatPriority and so on are where our chains stand among others: see nft(8), "Standard priority names".
const (
	dnatPriority   = -100
	filterPriority = 0
	snatPriority   = 100
)

// baseChain is a chain that the kernel sends packets to, and its rules.
type baseChain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    []exprs
}

func (f family) baseChains() []baseChain {
	forNew := func(chains ...string) []exprs {
		var out []exprs
		for _, c := range chains {
			out = append(out, join(isNew, jumpTo(c)))
		}
		return out
	}
	jump := func(chain string) []exprs { return []exprs{jumpTo(chain)} }
	return []baseChain{
		{"filter-prerouting-pre-dnat", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, dnatPriority - 10, forNew("firewall-check")},
		{"filter-output-pre-dnat", nftables.ChainTypeFilter, nftables.ChainHookOutput, dnatPriority - 10, forNew("firewall-check")},
		{"filter-input", nftables.ChainTypeFilter, nftables.ChainHookInput, filterPriority, forNew("nodeport-endpoints-check", "service-endpoints-check")},
		{"filter-forward", nftables.ChainTypeFilter, nftables.ChainHookForward, filterPriority, forNew("service-endpoints-check", "cluster-ips-check")},
		{"filter-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, filterPriority, forNew("service-endpoints-check", "cluster-ips-check")},
		{"nat-prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, dnatPriority, jump("services")},
		{"nat-output", nftables.ChainTypeNAT, nftables.ChainHookOutput, dnatPriority, jump("services")},
		{"nat-postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, snatPriority, jump("masquerading")},
	}
}

// fixedChains are those that every table has, whatever Services there are.
func (f family) fixedChains(n *model.Network) []chain {
	fixed := func(name string, rules ...exprs) chain {
		return chain{name: name, rules: func() []exprs { return rules }}
	}
	out := []chain{
		fixed("firewall-check", f.byVerdictMap(false, firewallIPs)),
		fixed("nodeport-endpoints-check", join(f.toNodePort(n), f.byVerdictMap(true, noEndpointPorts))),
		fixed("service-endpoints-check", f.byVerdictMap(false, noEndpointIPs)),
		fixed("cluster-ips-check", f.clusterIPsCheck(n)...),
		fixed("services", f.byVerdictMap(false, serviceIPs), join(f.toNodePort(n), f.byVerdictMap(true, serviceNodePorts))),
		fixed("masquerading", masqueradeMarked(n.MasqueradeMark), f.masqueradeHairpin()),
		fixed(rejectChain, f.reject()),
	}
	for _, b := range balanced {
		out = append(out, f.balance(b.set, b.nodePort))
	}
	return out
}

// balanced are the kinds of frontends and lists that have a chain, a map of endpoints and sets by their number.
var balanced = []struct {
	set      model.Set
	nodePort bool
}{{model.Cluster, false}, {model.Local, false}, {model.Cluster, true}, {model.Local, true}}

// toNodePort goes on if a packet is for an address at which NodePorts are served. Loopback is none: the packet would
// leave with a source that nobody can answer.
func (f family) toNodePort(n *model.Network) exprs {
	if n.AllNodePorts {
		return join(isLocal(expr.Fib{FlagDADDR: true}), f.inPrefix(f.daddr, f.loopback, expr.CmpOpNeq))
	}
	return f.inSet(f.daddr, nodePortIPs)
}

// clusterIPsCheck rejects what is for a port that a Service doesn't have, and drops what is for an address that no
// Service has yet: it may get one any moment, and the client shall try again.
func (f family) clusterIPsCheck(n *model.Network) []exprs {
	out := []exprs{join(f.inSet(f.daddr, clusterIPs), f.reject())}
	for _, cidr := range n.ServiceCIDRs {
		if model.FamilyOf(cidr.Addr()) == f.Family {
			out = append(out, join(f.inPrefix(f.daddr, cidr, expr.CmpOpEq), drop))
		}
	}
	return out
}

var masquerade = exprs{&expr.Masq{FullyRandom: true}}

// masqueradeMarked also takes the mark away, so that a packet that goes through here twice is not masqueraded twice.
func masqueradeMarked(bit uint32) exprs {
	mask := binaryutil.NativeEndian.PutUint32(bit)
	return join(exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4, Mask: []byte{255, 255, 255, 255}, Xor: mask},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: firstRegister, SourceRegister: true},
	}, masquerade)
}

// dnatDone is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const dnatDone = 1 << 5

func (f family) masqueradeHairpin() exprs {
	return join(exprs{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: firstRegister},
		&expr.Bitwise{SourceRegister: firstRegister, DestRegister: firstRegister, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(dnatDone), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: firstRegister, Data: make([]byte, 4)},
		f.loadAddr(f.saddr, firstRegister),
		f.loadAddr(f.daddr, firstRegister+f.words),
	}, loadPort(firstRegister+2*f.words), exprs{&expr.Lookup{SourceRegister: firstRegister, SetName: hairpins}}, masquerade)
}

// sets are those that every table has.
func (f family) sets(t *nftables.Table) []*nftables.Set {
	proto, port, slot := nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark
	set := func(name string, key ...nftables.SetDatatype) *nftables.Set {
		s := &nftables.Set{Table: t, Name: name, KeyType: key[0]}
		if len(key) > 1 {
			s.KeyType, s.Concatenation = nftables.MustConcatSetType(key...), true
		}
		return s
	}
	toVerdict := func(s *nftables.Set) *nftables.Set {
		s.IsMap, s.DataType = true, nftables.TypeVerdict
		return s
	}
	toEndpoint := func(s *nftables.Set) *nftables.Set {
		s.IsMap, s.DataType = true, nftables.MustConcatSetType(f.addr, port)
		return s
	}
	out := []*nftables.Set{
		set(clusterIPs, f.addr),
		set(nodePortIPs, f.addr),
		set(hairpins, f.addr, f.addr, proto, port),
		toVerdict(set(serviceIPs, f.addr, proto, port)),
		toVerdict(set(serviceNodePorts, proto, port)),
		toVerdict(set(noEndpointIPs, f.addr, proto, port)),
		toVerdict(set(noEndpointPorts, proto, port)),
		toVerdict(set(firewallIPs, f.addr, proto, port)),
	}
	for _, b := range balanced {
		key := []nftables.SetDatatype{f.addr, proto, port}
		if b.nodePort {
			key = key[1:]
		}
		for n := 1; n <= fewEndpoints; n++ {
			out = append(out, set(sizedName(b.set, b.nodePort, n), key...))
		}
		out = append(out, toEndpoint(set(endpointsMap(b.set, b.nodePort), append(slices.Clone(key), slot)...)))
	}
	return out
}

// maxClients bounds the clients that an endpoint keeps; without it the kernel takes 65535 for a set of this kind.
const maxClients = 1 << 20

func (f family) clientSet(t *nftables.Table, s timeoutSet) *nftables.Set {
	return &nftables.Set{Table: t, Name: s.name, KeyType: f.addr, Dynamic: true, HasTimeout: true, Timeout: s.timeout, Size: maxClients}
}

func (f family) slotMap(t *nftables.Table, name string) *nftables.Set {
	return &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeMark, IsMap: true, DataType: nftables.TypeVerdict}
}

// nodePortElements are the addresses at which NodePorts are served.
func (f family) nodePortElements(n *model.Network) []element {
	var out []element
	addrs := slices.Clone(n.NodePorts)
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, addr := range slices.Compact(addrs) {
		if model.FamilyOf(addr) == f.Family && !addr.IsLoopback() {
			out = append(out, element{set: nodePortIPs, key: string(addr.AsSlice())})
		}
	}
	return out
}

// check refuses what the rules can't say.
func check(n *model.Network) error {
	if n.MasqueradeMark == 0 || n.MasqueradeMark&(n.MasqueradeMark-1) != 0 {
		return fmt.Errorf("masquerade mark %#x is not a single bit", n.MasqueradeMark)
	}
	if max := unix.IFNAMSIZ - 1; len(n.Local.Bridge) > max || len(n.Local.InterfacePrefix) > max {
		return fmt.Errorf("interface %q is longer than %d bytes", n.Local.Bridge+n.Local.InterfacePrefix, max)
	}
	return nil
}
