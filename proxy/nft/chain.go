package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/proxy/model"
)

// chain is a chain that elements lead to, or that such a chain leads to.
type chain struct {
	name string
	// version differs when the rules of a chain of the same name differ.
	version string
	rules   func() []exprs
}

// entryChain says what a frontend's routes say: it marks packets that are to be masqueraded, by where they are from, and
// goes on to the chain that takes an endpoint. Frontends that are treated alike share it; it is named after what it does.
//
//	service-ips ──▶ pod/cluster_node-outside/masq-cluster ──▶ cluster
func (d *described) entryChain(routes model.Routes, targets [2]string, prefix string) chain {
	if r := routes[0]; routes == (model.Routes{r, r, r}) && !r.Masquerade {
		return chain{name: targets[r.Set]}
	}
	return chain{
		name:  prefix + routesName(routes, targets),
		rules: func() []exprs { return d.routeRules(routes, targets) },
	}
}

// routesName joins the sources that are treated alike.
func routesName(routes model.Routes, targets [2]string) string {
	var parts []string
	for source, route := range routes {
		name := "drop"
		if route.Action == model.Balance {
			name = path(targets[route.Set])
		}
		if route.Masquerade {
			name = "masq-" + name
		}
		if source > 0 && routes[source-1] == route {
			who, _, _ := strings.Cut(parts[len(parts)-1], "/")
			parts[len(parts)-1] = who + "-" + model.Source(source).String() + "/" + name
			continue
		}
		parts = append(parts, model.Source(source).String()+"/"+name)
	}
	return strings.Join(parts, "_")
}

// path is the part of a target's name that tells it from others of the same port.
func path(target string) string {
	first, _, _ := strings.Cut(target, "/")
	return first
}

// routeRules has rules for each source in the order of model.Source, and none for what is not balanced: such a packet
// goes on as it is, and the filter chains find it in no-endpoint-services.
func (d *described) routeRules(routes model.Routes, targets [2]string) []exprs {
	var out []exprs
	add := func(match exprs, route model.Route) {
		rule := match
		if route.Masquerade {
			rule = join(rule, mark(d.network.MasqueradeMark))
		}
		switch route.Action {
		case model.Balance:
			rule = join(rule, goTo(targets[route.Set]))
		default:
			rule = join(rule, exprs{&expr.Verdict{Kind: expr.VerdictReturn}})
		}
		out = append(out, rule)
	}
	pod, node, outside := routes[model.FromPod], routes[model.FromNode], routes[model.FromOutside]
	if pod != node || pod != outside {
		for _, match := range d.fromPod() {
			add(match, pod)
		}
	}
	if node != outside {
		add(isLocal(expr.Fib{FlagSADDR: true}), node)
	}
	add(nil, outside)
	return out
}

// fromPod has a rule's beginning for each way to tell that a packet is a pod's.
func (d *described) fromPod() []exprs {
	local := d.network.Local
	switch {
	case local.Bridge != "":
		return []exprs{inInterface(local.Bridge + "\x00")}
	case local.InterfacePrefix != "":
		return []exprs{inInterface(local.InterfacePrefix)}
	}
	var out []exprs
	for _, prefix := range local.Of(d.family.Family) {
		out = append(out, d.family.inPrefix(d.family.saddr, prefix, expr.CmpOpEq))
	}
	return out
}

// balanceName is of the chain that takes one of the endpoints of a frontend that has few.
func balanceName(set model.Set, nodePort bool) string {
	if nodePort {
		return "nodeport-" + strings.ToLower(set.String())
	}
	return strings.ToLower(set.String())
}

// sizedName is of the set of frontends with n endpoints, where these are few, or of the chain for such frontends.
func sizedName(set model.Set, nodePort bool, n int) string {
	return fmt.Sprintf("%s-%d", balanceName(set, nodePort), n)
}

// endpointsMap is the map from a frontend and a slot to an endpoint.
func endpointsMap(set model.Set, nodePort bool) string {
	return balanceName(set, nodePort) + "-endpoints"
}

// fewEndpoints is how many endpoints a frontend may have for its number of them to be in a set, where another number is
// another element. With more it is in the name of the chain that the frontend leads to: when the kernel is told of an
// element that leads to a chain, it looks at all elements of the table that do.
const fewEndpoints = 8

// balance takes one of the endpoints of a frontend that is in the set of those with n, for each such set:
//
//	ip daddr . meta l4proto . th dport @cluster-2 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @cluster-endpoints
func (f family) balance(set model.Set, nodePort bool) chain {
	return chain{name: balanceName(set, nodePort), rules: func() []exprs {
		var out []exprs
		for n := 1; n <= fewEndpoints; n++ {
			load, _ := f.loadFrontend(nodePort)
			out = append(out, join(load, exprs{&expr.Lookup{SourceRegister: firstRegister, SetName: sizedName(set, nodePort, n)}},
				f.toOneOf(set, nodePort, n)))
		}
		return out
	}}
}

// balanceChain is the same for all frontends with n endpoints, where these are many.
func (f family) balanceChain(set model.Set, nodePort bool, n int) chain {
	return chain{name: sizedName(set, nodePort, n), rules: func() []exprs { return []exprs{f.toOneOf(set, nodePort, n)} }}
}

func (f family) toOneOf(set model.Set, nodePort bool, n int) exprs {
	load, next := f.loadFrontend(nodePort)
	return join(load, exprs{
		&expr.Numgen{Register: next, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: firstRegister, DestRegister: firstRegister, IsDestRegSet: true, SetName: endpointsMap(set, nodePort)},
	}, f.toEndpoint(firstRegister))
}

// plainName is what may be part of the name of a chain or set, which the kernel lets have 255 bytes: with the longest
// names that an API server takes, those of all kinds fit.
var plainName = regexp.MustCompile(`^[A-Za-z0-9/._-]{1,196}$`)

// portName is a port's name as part of a chain's or set's name. A directory of Services may have names that no API server
// would have taken: these become a hash.
func portName(key model.PortKey) string {
	name := key.Service.String() + "/" + key.Protocol.String() + "/" + key.Port
	if !plainName.MatchString(name) {
		sum := sha256.Sum256([]byte(name))
		return hex.EncodeToString(sum[:16])
	}
	return name
}

func affinityName(key model.PortKey, endpoint netip.AddrPort) string {
	return fmt.Sprintf("affinity/%s/%s/%d", portName(key), strings.ReplaceAll(endpoint.Addr().String(), ":", "."), endpoint.Port())
}

func stickyName(key model.PortKey, endpoint netip.AddrPort) string {
	return "endpoint" + strings.TrimPrefix(affinityName(key, endpoint), "affinity")
}

// stickyChain sends a client to the endpoint that it had before, and any other one to one that it then keeps.
func (d *described) stickyChain(set model.Set, endpoints []netip.AddrPort) chain {
	key := d.port.Key
	return chain{
		name:    path(strings.ToLower(set.String())) + "/" + portName(key),
		version: fmt.Sprint(endpoints),
		rules: func() []exprs {
			var out []exprs
			for _, e := range endpoints {
				out = append(out, join(d.family.inSet(d.family.saddr, affinityName(key, e)), goTo(stickyName(key, e))))
			}
			return append(out, exprs{
				&expr.Numgen{Register: firstRegister, Modulus: uint32(len(endpoints)), Type: unix.NFT_NG_RANDOM},
				&expr.Lookup{SourceRegister: firstRegister, IsDestRegSet: true, SetName: slotsName(set, key)},
			})
		},
	}
}

// slotsName is the map from a slot to the chain of an endpoint.
func slotsName(set model.Set, key model.PortKey) string {
	return "slots-" + strings.ToLower(set.String()) + "/" + portName(key)
}

// stickyEndpoint remembers the client and sends it on.
func (d *described) stickyEndpoint(endpoint netip.AddrPort) chain {
	key := d.port.Key
	return chain{
		name:    stickyName(key, endpoint),
		version: d.port.Affinity.String(),
		rules: func() []exprs {
			return []exprs{
				{d.family.loadAddr(d.family.saddr, firstRegister), &expr.Dynset{SrcRegKey: firstRegister,
					SetName: affinityName(key, endpoint), Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: d.port.Affinity}},
				join(exprs{
					&expr.Immediate{Register: firstRegister, Data: endpoint.Addr().AsSlice()},
					&expr.Immediate{Register: firstRegister + d.family.words, Data: portBytes(endpoint.Port())[:2]},
				}, d.family.toEndpoint(firstRegister)),
			}
		},
	}
}

// firewallChain lets the sources of a LoadBalancer frontend through.
func (d *described) firewallChain(f model.Frontend) chain {
	return chain{
		name:    "firewall/" + portName(d.port.Key),
		version: fmt.Sprint(f.Sources),
		rules: func() []exprs {
			var out []exprs
			for _, source := range f.Sources {
				out = append(out, join(d.family.inPrefix(d.family.saddr, source, expr.CmpOpEq), exprs{&expr.Verdict{Kind: expr.VerdictReturn}}))
			}
			return append(out, drop)
		},
	}
}

// withoutGone keeps the slots of endpoints that stay, so that a change of one endpoint is a change of one element: new
// ones take the slots of those that are gone, or the next; the last ones fill what is left empty.
func withoutGone(slots []netip.AddrPort, now []model.Endpoint) []netip.AddrPort {
	stays := make(map[netip.AddrPort]bool, len(now))
	for _, e := range now {
		stays[e.Addr] = true
	}
	had := make(map[netip.AddrPort]bool, len(slots))
	for _, s := range slots {
		had[s] = true
	}
	var fresh []netip.AddrPort
	for _, e := range now {
		if !had[e.Addr] {
			fresh = append(fresh, e.Addr)
		}
	}
	out := slices.Clone(slots)
	for i := 0; i < len(out); {
		switch {
		case stays[out[i]]:
			i++
		case len(fresh) > 0:
			out[i], fresh = fresh[0], fresh[1:]
		default:
			out[i] = out[len(out)-1]
			out = out[:len(out)-1]
		}
	}
	return append(out, fresh...)
}
