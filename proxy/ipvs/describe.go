package ipvs

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// server is a virtual server: what is sent to it goes to one of its destinations.
type server struct {
	addr     netip.AddrPort
	protocol model.Protocol
}

func (s server) String() string { return s.addr.String() + "/" + s.protocol.String() }

// destinations are those of a virtual server.
type destinations struct {
	endpoints []netip.AddrPort
	affinity  time.Duration
}

// entry is an element of an ipset: a frontend, and what else the set is keyed by.
type entry struct {
	set      string     // without the family's prefix
	addr     netip.Addr // unspecified in a set of ports
	protocol model.Protocol
	port     uint16
	other    netip.Prefix // a source, of sets that have one
}

// The ipsets. Rules match them, whose number does not grow with that of Services.
const (
	clusterIPs         = "CLUSTER-IP"                // ClusterIPs that are served
	externalIPs        = "EXTERNAL-IP"               // external addresses with policy Cluster
	externalIPsLocal   = "EXTERNAL-IP-LOCAL"         // and with policy Local
	loadBalancers      = "LOAD-BALANCER"             // the same of load balancers
	loadBalancersLocal = "LOAD-BALANCER-LOCAL"       //
	nodePorts          = "NODE-PORT"                 // the node's addresses with NodePorts
	nodePortsLocal     = "NODE-PORT-LOCAL"           //
	firewalled         = "LOAD-BALANCER-FW"          // load balancers that are not for everybody
	firewallSources    = "LOAD-BALANCER-SOURCE-CIDR" // and who may come
	noLocal            = "NO-LOCAL"                  // nobody serves here what is from outside
	noLocalAtAll       = "NO-LOCAL-INTERNAL"         // nobody serves here, wherever it is from
	nobody             = "NO-ENDPOINTS"              // nobody serves what is for an address of the node, anywhere
	loopBack           = "LOOP-BACK"                 // endpoints of this node that send to themselves
	ipvsIPs            = "IPVS-IPS"                  // all addresses of the device
	healthChecks       = "HEALTH-CHECK-NODE-PORT"    // where load balancers ask for a Service's health
)

// bitmapPort is the kind of a set of ports, whatever the address.
const bitmapPort = "bitmap:port"

// setTypes are the sets and what they are keyed by.
var setTypes = map[string]string{
	clusterIPs: "hash:ip,port", externalIPs: "hash:ip,port", externalIPsLocal: "hash:ip,port", loadBalancers: "hash:ip,port",
	loadBalancersLocal: "hash:ip,port", nodePorts: "hash:ip,port", nodePortsLocal: "hash:ip,port", firewalled: "hash:ip,port",
	firewallSources: "hash:ip,port,net", noLocal: "hash:ip,port", noLocalAtAll: "hash:ip,port", nobody: "hash:ip,port", loopBack: "hash:ip,port,ip", ipvsIPs: "hash:ip",
	healthChecks: bitmapPort,
}

// byPolicy are the sets of a kind of address with policy Cluster and Local.
var byPolicy = map[model.Kind][2]string{
	model.ClusterIP:    {clusterIPs, clusterIPs},
	model.ExternalIP:   {externalIPs, externalIPsLocal},
	model.LoadBalancer: {loadBalancers, loadBalancersLocal},
	model.NodePort:     {nodePorts, nodePortsLocal},
}

var unspecified = map[model.Family]netip.Addr{model.IPv4: netip.IPv4Unspecified(), model.IPv6: netip.IPv6Unspecified()}

// described is what the kernel is to hold for one port.
type described struct {
	servers map[server]destinations
	entries []entry
	addrs   []netip.Addr // of the device
}

// node is what of this node decides what the kernel is to hold.
type node struct {
	// own are the addresses that other devices have. If one of them is a Service's as well, the device must not have it, lest
	// the node lose it with the Service, or all its other ports be refused.
	own map[netip.Addr]bool
	// nodePorts are where NodePorts are served.
	nodePorts []netip.Addr
}

func (n node) equal(o node) bool {
	return maps.Equal(n.own, o.own) && slices.Equal(n.nodePorts, o.nodePorts)
}

// describe says it for a port.
func (n node) describe(port *model.Port) *described {
	d := &described{servers: map[server]destinations{}}
	for _, f := range port.Frontends {
		if f.Kind != model.NodePort {
			at := place{addr: f.Addr, own: f.Kind != model.ClusterIP && n.own[f.Addr]}
			if !at.own { // a ClusterIP may be another device's as well, and is served here
				d.addrs = append(d.addrs, f.Addr)
				d.entries = append(d.entries, entry{set: ipvsIPs, addr: f.Addr})
			}
			d.frontend(port, f, at)
			continue
		}
		for _, addr := range n.nodePorts {
			if model.FamilyOf(addr) == port.Key.Family {
				d.frontend(port, f, place{addr: addr, own: true})
			}
		}
	}
	if port.HealthCheckNodePort != 0 {
		d.entries = append(d.entries, entry{set: healthChecks, addr: unspecified[port.Key.Family], protocol: model.TCP, port: port.HealthCheckNodePort})
	}
	known := map[netip.AddrPort]bool{}
	for _, set := range []model.Set{model.Cluster, model.Local} {
		for _, e := range port.Endpoints(set) {
			if e.OnNode && !known[e.Addr] {
				known[e.Addr] = true
				addr := e.Addr.Addr()
				d.entries = append(d.entries, entry{loopBack, addr, port.Key.Protocol, e.Addr.Port(), netip.PrefixFrom(addr, addr.BitLen())})
			}
		}
	}
	return d
}

// place is an address of a frontend.
type place struct {
	addr netip.Addr
	own  bool // it is the node's, and not the device's
}

func (d *described) frontend(port *model.Port, f model.Frontend, at place) {
	add := func(set string, other netip.Prefix) {
		d.entries = append(d.entries, entry{set, at.addr, port.Key.Protocol, f.Port, other})
	}
	if len(f.Sources) > 0 {
		add(firewalled, netip.Prefix{})
		for _, s := range f.Sources {
			add(firewallSources, s)
		}
	}
	outside := f.Routes[model.FromOutside]
	if outside.Action == model.Drop {
		if f.Routes[model.FromNode].Action == model.Drop {
			add(noLocalAtAll, netip.Prefix{})
			return
		}
		add(noLocal, netip.Prefix{})
	}
	set, ok := chosen(f.Routes)
	if !ok { // nobody serves the address, and a rule rejects what is for it
		if at.own {
			add(nobody, netip.Prefix{})
		}
		return
	}
	add(byPolicy[f.Kind][policy(f.Routes)], netip.Prefix{})
	var endpoints []netip.AddrPort
	for _, e := range port.Endpoints(set) {
		endpoints = append(endpoints, e.Addr)
	}
	d.servers[server{netip.AddrPortFrom(at.addr, f.Port), port.Key.Protocol}] = destinations{endpoints, port.Affinity}
}

// chosen is the list that a virtual server has, which can't tell where a packet is from: that for packets from outside, and
// only if these are dropped, that for the others. So pods are sent to local endpoints where policy Local has some, as with
// kube-proxy.
func chosen(routes model.Routes) (model.Set, bool) {
	for _, source := range []model.Source{model.FromOutside, model.FromNode, model.FromPod} {
		if r := routes[source]; r.Action == model.Balance {
			return r.Set, true
		}
	}
	return 0, false
}

// policy is Local where the source of packets from outside is kept.
func policy(routes model.Routes) model.Set {
	outside, node := routes[model.FromOutside], routes[model.FromNode]
	if outside.Action == model.Drop || node.Masquerade && !outside.Masquerade {
		return model.Local
	}
	return model.Cluster
}
