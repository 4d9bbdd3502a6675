package cni

import (
	"fmt"
	"math"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Annotations by which Kubernetes limits a pod's traffic, in bits per second.
const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// The kubelet refuses limits outside of these.
var (
	leastRate = resource.MustParse("1k")
	mostRate  = resource.MustParse("1P")
)

// runtimeConf says in CNI's words what Kubernetes' conventions are (https://www.cni.dev/docs/conventions/). Plugins
// get the capabilities that they ask for.
func (p Pod) runtimeConf() (*libcni.RuntimeConf, error) {
	capabilities := map[string]any{
		"io.kubernetes.cri.pod-annotations": p.Annotations,
	}
	if p.CgroupParent != "" {
		capabilities["cgroupPath"] = p.CgroupParent
	}
	if len(p.PortMappings) > 0 {
		capabilities["portMappings"] = portArgs(p.PortMappings)
	}
	if len(p.DNSServers)+len(p.DNSSearches)+len(p.DNSOptions) > 0 {
		capabilities["dns"] = map[string][]string{"servers": p.DNSServers, "searches": p.DNSSearches, "options": p.DNSOptions}
	}
	bandwidth, err := bandwidthArgs(p.Annotations)
	if err != nil {
		return nil, err
	}
	if len(bandwidth) > 0 {
		capabilities["bandwidth"] = bandwidth
	}
	args := [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", p.Namespace},
		{"K8S_POD_NAME", p.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
		{"K8S_POD_UID", p.UID},
	}
	for _, arg := range args {
		// They are put together as "key=value;key=value": a name could ask for the address of its choice.
		if strings.ContainsAny(arg[1], ";=\x00") {
			return nil, fmt.Errorf("%w: %s=%q can't be passed to plugins; leave out \";\" and \"=\"", ErrInvalid, arg[0], arg[1])
		}
	}
	return &libcni.RuntimeConf{
		ContainerID: p.ID, NetNS: p.NetNS, IfName: ifName, CapabilityArgs: capabilities, Args: args,
	}, nil
}

// portArg is one entry of the capability portMappings.
type portArg struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func portArgs(mappings []PortMapping) []portArg {
	var out []portArg
	for _, m := range mappings {
		if m.HostPort == 0 {
			continue // the port is only declared
		}
		arg := portArg{HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: m.Protocol}
		if m.HostIP.IsValid() {
			arg.HostIP = m.HostIP.String()
		}
		out = append(out, arg)
	}
	return out
}

// bandwidthArgs is the capability bandwidth. The bursts are as large as the plugin takes them: Kubernetes has no word
// for them.
func bandwidthArgs(annotations map[string]string) (map[string]uint64, error) {
	out := map[string]uint64{}
	for key, name := range map[string]string{ingressBandwidth: "ingress", egressBandwidth: "egress"} {
		text, ok := annotations[key]
		if !ok {
			continue
		}
		rate, err := resource.ParseQuantity(text)
		if err != nil || rate.Cmp(leastRate) < 0 || rate.Cmp(mostRate) > 0 {
			return nil, fmt.Errorf("%w: annotation %s: %q is not a rate in bits per second between %s and %s, such as \"10M\"",
				ErrInvalid, key, text, leastRate.String(), mostRate.String())
		}
		out[name+"Rate"] = uint64(rate.Value())
		out[name+"Burst"] = math.MaxInt32
	}
	return out, nil
}
