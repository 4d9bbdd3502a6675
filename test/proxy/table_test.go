package proxy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/orlop/orlop/proxy/model"
)

// scenario is a set of objects and what becomes of packets.
type scenario struct {
	name    string
	objects func(f family) []runtime.Object
	network func(n *model.Network) // changes the default one
	packets []packet
	// only, if set, is the backend that this is about.
	only string
}

// packet is sent from a host to an address: "cluster-1:80", "public-1:80", or a host's, "node:30080".
type packet struct {
	from, to string
	protocol model.Protocol // TCP if 0
	// want is "reject", "drop", "none" (no Service has to do with it), or the hosts of which one is reached and how the
	// client's address looks there: "pod-a|remote-a kept" or "pod-a masq".
	want string
	// iptables is what that backend does otherwise, as kube-proxy does in that mode.
	iptables string
	// ipvs is what that one does otherwise: a virtual server can't tell where a packet is from.
	ipvs string
}

func objects(o ...runtime.Object) []runtime.Object { return o }

// everyone sends from each kind of source: wants are of a pod, the node and the outside host.
func everyone(to, pod, node, outside string) []packet {
	return []packet{{from: "client", to: to, want: pod}, {from: "node", to: to, want: node}, {from: "outside", to: to, want: outside}}
}

// unknownPort has packets rejected that are for a ClusterIP's other ports; with iptables they are nobody's.
func unknownPort(packets []packet) []packet {
	for i := range packets {
		packets[i].want, packets[i].iptables = "reject", "none"
	}
	return packets
}

// localOnly has all sources sent to the node's endpoints in mode ipvs, where policy Local has some.
func localOnly(pod, node string, packets []packet) []packet {
	packets[0].ipvs, packets[1].ipvs = pod, node
	return packets
}

// notFromNode leaves out what the node sends: a raw socket is refused what a rule drops, as it is what a rule rejects.
func notFromNode(packets []packet) []packet {
	return slices.DeleteFunc(packets, func(p packet) bool { return p.from == "node" })
}

func join[T any](lists ...[]T) []T {
	var out []T
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

func with(p model.Protocol, packets []packet) []packet {
	for i := range packets {
		packets[i].protocol = p
	}
	return packets
}

const allPods = "pod-a|pod-b|remote-a|remote-b"

var table = []scenario{
	{
		name: "ClusterIP",
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: join(everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			unknownPort(everyone("cluster-1:81", "", "", "")), // a port that the Service doesn't have
			everyone("cluster-2:80", "none", "none", "none"),
			[]packet{{from: "pod-a", to: "cluster-1:80", want: "pod-a masq|remote-a kept"}}), // hairpin
	},
	{
		name: "UDP and SCTP, two ports",
		objects: func(f family) []runtime.Object {
			return objects(service(f, protocol(corev1.ProtocolUDP), port("second", corev1.ProtocolSCTP, 81), port("other", corev1.ProtocolTCP, 82)),
				slice(f, "web", "pod-a", "remote-a"))
		},
		packets: join(with(model.UDP, everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq")),
			with(model.SCTP, everyone("cluster-1:81", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq")),
			unknownPort(everyone("cluster-1:80", "", "", "")),      // TCP is not served there
			everyone("cluster-1:82", "reject", "reject", "reject"), // no endpoint has a port of that name
			unknownPort(with(model.UDP, everyone("cluster-1:81", "", "", "")))),
	},
	{
		name: "SCTP at each kind of address",
		objects: func(f family) []runtime.Object {
			return objects(service(f, protocol(corev1.ProtocolSCTP), nodePort(30080), loadBalancer(f.public(1)), external(f.public(2)), externalLocal, sources("203.0.113.0/24", "2001:db8:f::/64")),
				slice(f, "web", "pod-a", "remote-a"))
		},
		packets: with(model.SCTP, join(everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			notFromNode(everyone("public-1:80", "drop", "", "pod-a kept")), everyone("public-2:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a kept"),
			everyone("node:30080", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a kept"))),
	},
	{
		name: "SCTP without endpoints, and without local ones",
		objects: func(f family) []runtime.Object {
			return objects(service(f, protocol(corev1.ProtocolSCTP)), service(f, named("xweb", f.cluster(2)), protocol(corev1.ProtocolSCTP), internalLocal),
				slice(f, "web"), slice(f, "xweb", "remote-a"))
		},
		packets: with(model.SCTP, join(everyone("cluster-1:80", "reject", "reject", "reject"), notFromNode(everyone("cluster-2:80", "drop", "", "drop")))),
	},
	{
		name: "a Service in both families, with endpoints in each",
		objects: func(f family) []runtime.Object {
			return objects(service(f, f.both, nodePort(30080)), slice(f, "web", "pod-a"), more(slice(1-f, "web", "remote-a")))
		},
		packets: join(everyone("cluster-1:80", "pod-a kept", "pod-a masq", "pod-a masq"), everyone("node:30080", "pod-a masq", "pod-a masq", "pod-a masq")),
	},
	{
		name: "a Service in both families, with endpoints in the other one only",
		objects: func(f family) []runtime.Object {
			return objects(service(f, f.both), slice(1-f, "web", "pod-a"))
		},
		packets: everyone("cluster-1:80", "reject", "reject", "reject"),
	},
	{
		name: "a port without a name",
		objects: func(f family) []runtime.Object {
			return objects(service(f, unnamed), unnamedSlice(slice(f, "web", "pod-a")))
		},
		packets: everyone("cluster-1:80", "pod-a kept", "pod-a masq", "pod-a masq"),
	},
	{
		name: "slices that differ in their endpoints' state, and one of host names",
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a terminating", "pod-b notready", "remote-a"), more(slice(f, "web", "pod-a", "remote-b gone")),
				names(slice(f, "web", "pod-b")))
		},
		packets: everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
	},
	{
		name: "another proxy's",
		objects: func(f family) []runtime.Object {
			return objects(service(f, labelled("service.kubernetes.io/service-proxy-name", "other"), nodePort(30080)), slice(f, "web", "pod-a"))
		},
		packets: join(everyone("cluster-1:80", "none", "none", "none"), everyone("node:30080", "reject", "reject", "reject")),
	},
	{
		name: "headless and ExternalName are nobody's",
		objects: func(f family) []runtime.Object {
			return objects(service(f, func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }),
				service(f, named("other", ""), func(s *corev1.Service) { s.Spec.Type, s.Spec.ClusterIP = corev1.ServiceTypeExternalName, "" }),
				slice(f, "web", "pod-a"))
		},
		packets: everyone("cluster-1:80", "none", "none", "none"),
	},
	{
		name: "no endpoints at all",
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), loadBalancer(f.public(1)), external(f.public(2))), slice(f, "web", "pod-a notready", "remote-a gone"))
		},
		packets: join(everyone("cluster-1:80", "reject", "reject", "reject"), everyone("public-1:80", "reject", "reject", "reject"),
			everyone("public-2:80", "reject", "reject", "reject"), everyone("node:30080", "reject", "reject", "reject")),
	},
	{
		name: "no endpoints, UDP",
		objects: func(f family) []runtime.Object {
			return objects(service(f, protocol(corev1.ProtocolUDP)), slice(f, "web"))
		},
		packets: with(model.UDP, everyone("cluster-1:80", "reject", "reject", "reject")),
	},
	{
		name: "NodePort at the node's primary address",
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080)), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: join(everyone("node:30080", "pod-a|remote-a masq", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			everyone("node-second:30080", "reject", "reject", "reject"), // the kernel's own answer: nobody listens
			everyone("node:30081", "reject", "reject", "reject"),
			everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq")),
	},
	{
		name:    "NodePort at all addresses",
		network: func(n *model.Network) { n.AllNodePorts, n.NodePorts = true, nil },
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080)), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: join(everyone("node:30080", "pod-a|remote-a masq", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			everyone("node-second:30080", "pod-a|remote-a masq", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			[]packet{{from: "client", to: "bridge:30080", want: "pod-a|remote-a masq"}}),
	},
	{
		name:    "NodePort at a second address",
		network: func(n *model.Network) { n.NodePorts = hostAddrs("node-second") },
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), protocol(corev1.ProtocolUDP)), slice(f, "web", "pod-a"))
		},
		packets: with(model.UDP, join(everyone("node-second:30080", "pod-a masq", "pod-a masq", "pod-a masq"),
			everyone("node:30080", "reject", "reject", "reject"))),
	},
	{
		name: "LoadBalancer and externalIPs",
		objects: func(f family) []runtime.Object {
			return objects(service(f, loadBalancer(f.public(1)), external(f.public(2), f.public(3))), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: join(everyone("public-1:80", "pod-a|remote-a masq", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			everyone("public-2:80", "pod-a|remote-a masq", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			[]packet{{from: "outside", to: "public-3:80", want: "pod-a|remote-a masq"}}),
	},
	{
		name: "LoadBalancer with ipMode Proxy",
		objects: func(f family) []runtime.Object {
			return objects(service(f, loadBalancer(f.public(1)), proxied), slice(f, "web", "pod-a"))
		},
		packets: []packet{{from: "client", to: "public-1:80", want: "none"}, {from: "outside", to: "cluster-1:80", want: "pod-a masq"}},
	},
	{
		name: "externalTrafficPolicy Local",
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), loadBalancer(f.public(1)), external(f.public(2)), externalLocal), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: join(everyone("public-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a kept"),
			everyone("public-2:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a kept"),
			everyone("node:30080", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a kept"),
			everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq")),
	},
	{
		name: "externalTrafficPolicy Local without local endpoints",
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), loadBalancer(f.public(1)), externalLocal), slice(f, "web", "remote-a", "pod-a notready"))
		},
		packets: join(everyone("public-1:80", "remote-a kept", "remote-a masq", "drop"),
			everyone("node:30080", "remote-a kept", "remote-a masq", "drop"),
			everyone("cluster-1:80", "remote-a kept", "remote-a masq", "remote-a masq")),
	},
	{
		name: "internalTrafficPolicy Local",
		objects: func(f family) []runtime.Object {
			return objects(service(f, internalLocal, nodePort(30080)), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: join(everyone("cluster-1:80", "pod-a kept", "pod-a masq", "pod-a masq"),
			everyone("node:30080", "pod-a|remote-a masq", "pod-a|remote-a masq", "pod-a|remote-a masq")),
	},
	{
		name: "internalTrafficPolicy Local without local endpoints",
		objects: func(f family) []runtime.Object {
			return objects(service(f, internalLocal, nodePort(30080)), slice(f, "web", "remote-a"))
		},
		packets: join(everyone("cluster-1:80", "drop", "drop", "drop"), everyone("node:30080", "remote-a masq", "remote-a masq", "remote-a masq")),
	},
	{
		name: "both policies Local",
		objects: func(f family) []runtime.Object {
			return objects(service(f, internalLocal, nodePort(30080), externalLocal), slice(f, "web", "pod-b", "remote-a"))
		},
		packets: join(everyone("cluster-1:80", "pod-b kept", "pod-b masq", "pod-b masq"),
			everyone("node:30080", "pod-b|remote-a kept", "pod-b|remote-a masq", "pod-b kept")),
	},
	{
		name: "loadBalancerSourceRanges",
		objects: func(f family) []runtime.Object {
			ranges := []string{"203.0.113.0/24", " 2001:db8:f::/64"}
			return objects(service(f, nodePort(30080), loadBalancer(f.public(1)), sources(ranges...)), slice(f, "web", "pod-a"))
		},
		packets: join(everyone("public-1:80", "drop", "drop", "pod-a masq"),
			everyone("node:30080", "pod-a masq", "pod-a masq", "pod-a masq"), // for better or worse, not NodePorts
			everyone("cluster-1:80", "pod-a kept", "pod-a masq", "pod-a masq")),
	},
	{
		name: "loadBalancerSourceRanges of the node and its pods",
		objects: func(f family) []runtime.Object {
			ranges := []string{"192.0.2.0/24", "10.244.0.0/16", "2001:db8::/64", "fd00:244::/64"}
			return objects(service(f, loadBalancer(f.public(1)), sources(ranges...)), slice(f, "web", "pod-a"))
		},
		packets: everyone("public-1:80", "pod-a masq", "pod-a masq", "drop"),
	},
	{
		name: "loadBalancerSourceRanges of everybody, and of the other family",
		objects: func(f family) []runtime.Object {
			return objects(service(f, loadBalancer(f.public(1)), sources("0.0.0.0/0", "::/0", "172.16.0.0/12", "fd00:1::/64")), slice(f, "web", "pod-a"))
		},
		packets: everyone("public-1:80", "pod-a masq", "pod-a masq", "pod-a masq"),
	},
	{
		name: "loadBalancerSourceRanges with policy Local and a health check", // for which see TestHealthCheckPasses
		objects: func(f family) []runtime.Object {
			return objects(service(f, loadBalancer(f.public(1)), externalLocal, healthCheck(31000), sources("203.0.113.0/24", "2001:db8:f::/64", "10.244.0.0/16", "fd00:244::/64")),
				slice(f, "web", "pod-a", "remote-a"))
		},
		packets: everyone("public-1:80", "pod-a|remote-a kept", "drop", "pod-a kept"),
	},
	{
		name: "terminating endpoints serve if none is ready",
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), externalLocal), slice(f, "web", "pod-a terminating", "remote-a terminating", "pod-b notready", "remote-b gone"))
		},
		packets: join(everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			everyone("node:30080", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a kept")),
	},
	{
		name: "terminating endpoints don't serve beside ready ones, but for policy Local",
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), externalLocal), slice(f, "web", "pod-a terminating", "remote-a"))
		},
		packets: join(everyone("cluster-1:80", "remote-a kept", "remote-a masq", "remote-a masq"),
			localOnly("pod-a kept", "pod-a masq", everyone("node:30080", "remote-a kept", "remote-a masq", "pod-a kept"))),
	},
	{
		name: "hints for this zone",
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a zone=b", "remote-a zone=a", "remote-b zone=a zone=b"))
		},
		packets: everyone("cluster-1:80", "remote-a|remote-b kept", "remote-a|remote-b masq", "remote-a|remote-b masq"),
	},
	{
		name: "trafficDistribution without hints", // who sets these says how it goes
		objects: func(f family) []runtime.Object {
			return objects(service(f, distribution("PreferSameNode")), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
	},
	{
		name: "trafficDistribution PreferClose",
		objects: func(f family) []runtime.Object {
			return objects(service(f, distribution("PreferClose"), nodePort(30080)), slice(f, "web", "pod-a zone=a", "remote-a zone=a", "remote-b zone=b"))
		},
		packets: join(everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			everyone("node:30080", "pod-a|remote-a masq", "pod-a|remote-a masq", "pod-a|remote-a masq")),
	},
	{
		name: "trafficDistribution PreferSameZone, with one that terminates",
		objects: func(f family) []runtime.Object {
			return objects(service(f, distribution("PreferSameZone")), slice(f, "web", "pod-a zone=a terminating", "remote-a zone=a", "remote-b zone=b"))
		},
		packets: everyone("cluster-1:80", "remote-a kept", "remote-a masq", "remote-a masq"),
	},
	{
		name: "trafficDistribution PreferSameNode",
		objects: func(f family) []runtime.Object {
			return objects(service(f, distribution("PreferSameNode"), loadBalancer(f.public(1))),
				slice(f, "web", "pod-a zone=a node=here", "pod-b zone=a node=here", "remote-a zone=a node=there"))
		},
		packets: join(everyone("cluster-1:80", "pod-a|pod-b kept", "pod-a|pod-b masq", "pod-a|pod-b masq"),
			everyone("public-1:80", "pod-a|pod-b masq", "pod-a|pod-b masq", "pod-a|pod-b masq")),
	},
	{
		name: "hints for other zones only",
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a zone=b", "remote-a zone=c"))
		},
		packets: everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
	},
	{
		name: "hints that are not complete",
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a zone=b", "remote-a zone=a", "pod-b"))
		},
		packets: everyone("cluster-1:80", "pod-a|pod-b|remote-a kept", "pod-a|pod-b|remote-a masq", "pod-a|pod-b|remote-a masq"),
	},
	{
		name: "hints of endpoints that are not ready don't count",
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a notready", "remote-a zone=a", "remote-b zone=b"))
		},
		packets: everyone("cluster-1:80", "remote-a kept", "remote-a masq", "remote-a masq"),
	},
	{
		name: "hints for this node before those for the zone",
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a zone=a node=here", "remote-a zone=a node=there"))
		},
		packets: everyone("cluster-1:80", "pod-a kept", "pod-a masq", "pod-a masq"),
	},
	{
		name: "hints for other nodes, then for the zone",
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a zone=b node=there", "remote-a zone=a node=there"))
		},
		packets: everyone("cluster-1:80", "remote-a kept", "remote-a masq", "remote-a masq"),
	},
	{
		name: "hints with policy Local",
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), externalLocal), slice(f, "web", "pod-a zone=b", "remote-a zone=a"))
		},
		packets: join(everyone("cluster-1:80", "remote-a kept", "remote-a masq", "remote-a masq"),
			localOnly("pod-a kept", "pod-a masq", everyone("node:30080", "remote-a kept", "remote-a masq", "pod-a kept"))),
	},
	{
		name:    "no way to tell pods",
		network: func(n *model.Network) { n.Local = model.LocalDetection{} },
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), externalLocal), slice(f, "web", "pod-a", "pod-b"))
		},
		packets: join(everyone("cluster-1:80", "pod-a|pod-b kept", "pod-a|pod-b kept", "pod-a|pod-b kept"),
			everyone("node:30080", "pod-a|pod-b kept", "pod-a|pod-b masq", "pod-a|pod-b kept")),
	},
	{
		name:    "pods told by their bridge",
		network: func(n *model.Network) { n.Local = model.LocalDetection{Bridge: "cni0"} },
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), externalLocal), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: join(everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			everyone("node:30080", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a kept")),
	},
	{
		name:    "pods told by how their interfaces begin",
		network: func(n *model.Network) { n.Local = model.LocalDetection{InterfacePrefix: "cni"} },
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), externalLocal), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: join(everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
			everyone("node:30080", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a kept")),
	},
	{
		name: "pods told by the node's range",
		network: func(n *model.Network) {
			n.Local = model.LocalDetection{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:244::/112")}}
		},
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: everyone("cluster-1:80", "pod-a|remote-a kept", "pod-a|remote-a masq", "pod-a|remote-a masq"),
	},
	{
		name:    "masqueradeAll",
		network: func(n *model.Network) { n.MasqueradeAll = true },
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: everyone("cluster-1:80", "pod-a|remote-a masq", "pod-a|remote-a masq", "pod-a|remote-a masq"),
	},
	{
		name:    "another mark",
		network: func(n *model.Network) { n.MasqueradeMark = 1 << 3 },
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080)), slice(f, "web", "pod-a", "remote-a"))
		},
		packets: everyone("node:30080", "pod-a|remote-a masq", "pod-a|remote-a masq", "pod-a|remote-a masq"),
	},
	{
		name: "affinity",
		objects: func(f family) []runtime.Object {
			return objects(service(f, affinity(100), nodePort(30080), loadBalancer(f.public(1))), slice(f, "web", "pod-a", "pod-b", "remote-a", "remote-b"))
		},
		packets: join(everyone("cluster-1:80", allPods+" kept", allPods+" masq", allPods+" masq"),
			everyone("node:30080", allPods+" masq", allPods+" masq", allPods+" masq"),
			everyone("public-1:80", allPods+" masq", allPods+" masq", allPods+" masq")),
	},
	{
		name: "affinity with policy Local",
		objects: func(f family) []runtime.Object {
			return objects(service(f, affinity(100), nodePort(30080), externalLocal, protocol(corev1.ProtocolUDP)), slice(f, "web", "pod-a", "pod-b", "remote-a"))
		},
		packets: with(model.UDP, join(everyone("cluster-1:80", "pod-a|pod-b|remote-a kept", "pod-a|pod-b|remote-a masq", "pod-a|pod-b|remote-a masq"),
			[]packet{{from: "outside", to: "node:30080", want: "pod-a|pod-b kept"}})),
	},
	{
		name: "unallocated addresses",
		network: func(n *model.Network) {
			n.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/64")}
		},
		only: "nftables",
		objects: func(f family) []runtime.Object {
			return objects(service(f), slice(f, "web", "pod-a"))
		},
		packets: join(everyone("cluster-9:80", "drop", "drop", "drop"), everyone("cluster-1:80", "pod-a kept", "pod-a masq", "pod-a masq"),
			unknownPort(everyone("cluster-1:99", "", "", ""))),
	},
	{
		name: "two Services, one address",
		objects: func(f family) []runtime.Object {
			return objects(service(f, external(f.public(1))), service(f, named("xweb", f.cluster(2)), external(f.public(1))),
				slice(f, "web", "pod-a"), slice(f, "xweb", "pod-b"))
		},
		packets: join(everyone("public-1:80", "pod-a masq", "pod-a masq", "pod-a masq"),
			everyone("cluster-2:80", "pod-b kept", "pod-b masq", "pod-b masq")),
	},
	{
		name: "a pod reaches itself through every door",
		objects: func(f family) []runtime.Object {
			return objects(service(f, nodePort(30080), loadBalancer(f.public(1)), externalLocal, port("second", corev1.ProtocolUDP, 81)), slice(f, "web", "pod-a"))
		},
		packets: []packet{
			{from: "pod-a", to: "cluster-1:80", want: "pod-a masq"}, {from: "pod-a", to: "node:30080", want: "pod-a masq"},
			{from: "pod-a", to: "public-1:80", want: "pod-a masq"}, {from: "pod-a", to: "cluster-1:81", protocol: model.UDP, want: "pod-a masq"},
		},
	},
}

func hostAddrs(name string) []netip.Addr {
	addrs := hostOf(name).addrs
	return addrs[:]
}
