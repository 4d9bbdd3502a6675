package nft

import (
	"net/netip"
	"slices"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// The maps and sets that elements of ports are in. The names are those that kube-proxy's users know, where there is such
// a set.
const (
	clusterIPs       = "cluster-ips"           // addr
	hairpins         = "hairpin-connections"   // addr . addr . proto . port
	serviceIPs       = "service-ips"           // addr . proto . port : verdict
	serviceNodePorts = "service-nodeports"     // proto . port : verdict
	noEndpointIPs    = "no-endpoint-services"  // addr . proto . port : verdict
	noEndpointPorts  = "no-endpoint-nodeports" // proto . port : verdict
	firewallIPs      = "firewall-ips"          // addr . proto . port : verdict
	nodePortIPs      = "nodeport-ips"          // addr
	rejectChain      = "reject-chain"
)

// element is an element of a set or map. Its key in the set must be unique; two ports may have an element in common only
// in cluster-ips and hairpin-connections.
type element struct {
	set, key string
	value    string // of a map from keys to addresses
	verdict  string // of a map from keys to verdicts: the chain to go to, or toDrop
	comment  string
}

// toDrop is no chain's name.
const toDrop = "(drop)"

// timeoutSet is a set of clients of an endpoint.
type timeoutSet struct {
	name    string
	timeout time.Duration
}

// record is what was said of a port: what the kernel holds follows from it.
type record struct {
	port *model.Port
	// slots are the endpoints of each model.Set in the order of their slots.
	slots [2][]netip.AddrPort
}

// next is the record for a port that has changed.
func (r record) next(port *model.Port) record {
	return record{port: port, slots: [2][]netip.AddrPort{
		withoutGone(r.slots[model.Cluster], port.Cluster), withoutGone(r.slots[model.Local], port.Local),
	}}
}

// described is what the kernel is to hold for one port.
type described struct {
	family  family
	network *model.Network
	record

	elements []element
	chains   []chain // a chain comes after those that lead to it
	clients  []timeoutSet
	slotMaps []string
}

func describe(f family, network *model.Network, r record) *described {
	d := &described{family: f, network: network, record: r}
	for _, frontend := range r.port.Frontends {
		d.frontend(frontend)
	}
	for set := range d.slots {
		for _, e := range r.port.Endpoints(model.Set(set)) {
			if e.OnNode && !(set == int(model.Local) && slices.Contains(r.port.Cluster, e)) {
				d.hairpin(e.Addr)
			}
		}
	}
	if r.port.Affinity != 0 {
		d.sticky()
	}
	return d
}

func (d *described) add(e element) { d.elements = append(d.elements, e) }

func (d *described) use(c chain) {
	if !slices.ContainsFunc(d.chains, func(have chain) bool { return have.name == c.name }) {
		d.chains = append(d.chains, c)
	}
}

func (d *described) frontend(f model.Frontend) {
	key := frontendKey(f.Addr, d.port.Key.Protocol, f.Port)
	nodePort := f.Kind == model.NodePort
	served, refused := serviceIPs, noEndpointIPs
	if nodePort {
		served, refused = serviceNodePorts, noEndpointPorts
	}
	if f.Kind == model.ClusterIP {
		d.add(element{set: clusterIPs, key: string(f.Addr.AsSlice())})
	}
	if len(f.Sources) > 0 {
		firewall := d.firewallChain(f)
		d.use(firewall)
		d.add(element{set: firewallIPs, key: key, verdict: firewall.name})
	}
	if verdict, some := refusal(f.Routes); some {
		d.add(element{set: refused, key: key, verdict: verdict, comment: d.port.Key.String()})
	}
	if entry, some := d.entry(f, key); some {
		d.add(element{set: served, key: key, verdict: entry, comment: d.port.Key.String()})
	}
}

// refusal is what befalls a packet that still has the frontend's address when it meets the filter chains: one that no
// route led to an endpoint.
func refusal(routes model.Routes) (string, bool) {
	for _, r := range routes {
		switch r.Action {
		case model.Reject:
			return rejectChain, true
		case model.Drop:
			return toDrop, true
		}
	}
	return "", false
}

// entry is the chain that packets to a frontend go to, if any of them is balanced, with what that leads to.
func (d *described) entry(f model.Frontend, key string) (string, bool) {
	var used [2]bool
	for _, r := range f.Routes {
		if r.Action == model.Balance {
			used[r.Set] = true
		}
	}
	if !used[model.Cluster] && !used[model.Local] {
		return "", false
	}
	nodePort, prefix := f.Kind == model.NodePort, ""
	var targets [2]string
	var behind []chain
	for set, isUsed := range used {
		set, n := model.Set(set), len(d.slots[set])
		if !isUsed {
			continue
		}
		switch {
		case d.port.Affinity != 0:
			behind = append(behind, d.stickyChain(set, d.slots[set]))
			targets[set] = behind[len(behind)-1].name
			prefix = "entry/" + portName(d.port.Key) + "/"
			continue
		case n <= fewEndpoints:
			targets[set] = balanceName(set, nodePort)
			d.add(element{set: sizedName(set, nodePort, n), key: key})
		default:
			behind = append(behind, d.family.balanceChain(set, nodePort, n))
			targets[set] = behind[len(behind)-1].name
		}
		d.slotElements(set, endpointsMap(set, nodePort), key)
	}
	entry := d.entryChain(f.Routes, targets, prefix)
	if entry.rules != nil {
		d.use(entry)
	}
	for _, c := range behind {
		d.use(c)
	}
	return entry.name, true
}

func (d *described) slotElements(set model.Set, name, key string) {
	for slot, endpoint := range d.slots[set] {
		d.add(element{set: name, key: slotKey(key, slot), value: endpointValue(endpoint)})
	}
}

// hairpin has an endpoint that reaches itself masqueraded: it would take its own packet for a lost one otherwise.
func (d *described) hairpin(endpoint netip.AddrPort) {
	addr := string(endpoint.Addr().AsSlice())
	d.add(element{set: hairpins, key: addr + frontendKey(endpoint.Addr(), d.port.Key.Protocol, endpoint.Port())})
}

// sticky has, for each endpoint, a set of the clients that it keeps and the chain that puts them there, and for each list
// a map from slots to these chains.
func (d *described) sticky() {
	known := map[netip.AddrPort]bool{}
	for set, slots := range d.slots {
		set := model.Set(set)
		if len(slots) == 0 {
			continue
		}
		d.slotMaps = append(d.slotMaps, slotsName(set, d.port.Key))
		for slot, endpoint := range slots {
			d.add(element{set: slotsName(set, d.port.Key), key: slotKey("", slot),
				verdict: stickyName(d.port.Key, endpoint)})
			if known[endpoint] {
				continue
			}
			known[endpoint] = true
			d.use(d.stickyEndpoint(endpoint))
			d.clients = append(d.clients, timeoutSet{name: affinityName(d.port.Key, endpoint), timeout: d.port.Affinity})
		}
	}
}
