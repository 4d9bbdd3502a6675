package watch

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/proxy/model"
)

// Node is this node as the API server knows it. The zero value but for its name is one that is not known yet.
type Node struct {
	model.Node
	// Addresses are the node's own: the primary one, and the first of the other family where it has one.
	Addresses []netip.Addr
	// PodCIDRs are the ranges of the addresses of the node's pods.
	PodCIDRs []netip.Prefix
	// Leaving is true for a node that is gone or will be soon: load balancers shall turn away.
	Leaving bool
}

// Equal tells whether nothing differs.
func (n Node) Equal(o Node) bool {
	return n.Node == o.Node && n.Leaving == o.Leaving && slices.Equal(n.Addresses, o.Addresses) && slices.Equal(n.PodCIDRs, o.PodCIDRs)
}

// leavingTaint is what the cluster autoscaler gives a node before it deletes it.
const leavingTaint = "ToBeDeletedByClusterAutoscaler"

// ParseNode takes from a Node what a proxy needs. The error tells each value that can't be used; what is returned is
// without these.
func ParseNode(in *corev1.Node) (Node, error) {
	out := Node{Node: model.Node{Name: in.Name, Zone: in.Labels[corev1.LabelTopologyZone]}, Leaving: leaving(in)}
	var errs []error
	for _, cidr := range podCIDRs(in) {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.podCIDRs: %q is not a CIDR; it is left out", cidr))
			continue
		}
		out.PodCIDRs = append(out.PodCIDRs, prefix.Masked())
	}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, address := range in.Status.Addresses {
			if address.Type != kind {
				continue
			}
			addr, err := netip.ParseAddr(address.Address)
			if err != nil {
				errs = append(errs, fmt.Errorf("status.addresses: %s %q is not an IP address; it is left out", kind, address.Address))
				continue
			}
			out.add(addr.Unmap().WithZone(""))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return out, fmt.Errorf("node %s: %w", in.Name, err)
	}
	return out, nil
}

// add keeps the first address of each family.
func (n *Node) add(addr netip.Addr) {
	if !slices.ContainsFunc(n.Addresses, func(a netip.Addr) bool { return model.FamilyOf(a) == model.FamilyOf(addr) }) {
		n.Addresses = append(n.Addresses, addr)
	}
}

func podCIDRs(in *corev1.Node) []string {
	if len(in.Spec.PodCIDRs) == 0 && in.Spec.PodCIDR != "" {
		return []string{in.Spec.PodCIDR}
	}
	return in.Spec.PodCIDRs
}

func leaving(in *corev1.Node) bool {
	return in.DeletionTimestamp != nil ||
		slices.ContainsFunc(in.Spec.Taints, func(t corev1.Taint) bool { return t.Key == leavingTaint })
}

// IPs are the node's addresses as the rules take them, one of each family, the primary one first. The address that the
// proxy is told to bind to goes before the node's own, unless it is invalid or unspecified; what is not known is loopback.
// The order of precedence is kube-proxy's.
func (n Node) IPs(bind netip.Addr) []netip.Addr {
	known := Node{}
	if bind = bind.Unmap(); bind.IsValid() && !bind.IsUnspecified() {
		known.add(bind)
	}
	for _, addr := range n.Addresses {
		known.add(addr)
	}
	known.add(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	known.add(netip.IPv6Loopback())
	return known.Addresses
}
