// Package admit decides whether a pod may run on the node at all: the last check, after the scheduler's, and the only one
// for static pods. It is pure. Reasons are kubelet's, since controllers and people read them.
package admit

import (
	"fmt"
	"net"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/orlop/orlop/kubelet/pod"
)

// Refusal is why a pod may not run here.
type Refusal struct{ Reason, Message string }

// ReasonAffinity is that of a node which is not one that the pod may run on.
const ReasonAffinity = "NodeAffinity"

// Node is where pods shall run.
type Node struct {
	Object      *v1.Node
	Allocatable v1.ResourceList
	Pods        []*v1.Pod // that were admitted and have not ended
	Sysctls     []string  // allowedUnsafeSysctls; "net.*" allows all that begin so
	Pressure    Pressure
	// ShuttingDown is true once the machine is about to stop.
	ShuttingDown bool
}

// Pressure is what the node is short of.
type Pressure struct{ Memory, Disk, PIDs bool }

type check func(p *v1.Pod, n Node) *Refusal

var allButResources = []check{shutdown, system, groups, sysctls, pressure, affinity, taints, ports}

// Check returns nil if the pod may run.
func Check(p *v1.Pod, n Node) *Refusal {
	return refuse(p, n, append(slices.Clone(allButResources), resources))
}

// Fits returns nil if the node has what the pod asks for.
func Fits(p *v1.Pod, n Node) *Refusal { return refuse(p, n, []check{resources}) }

func refuse(p *v1.Pod, n Node, checks []check) *Refusal {
	for _, check := range checks {
		if r := check(p, n); r != nil {
			return r
		}
	}
	return nil
}

func shutdown(_ *v1.Pod, n Node) *Refusal {
	if n.ShuttingDown {
		return &Refusal{"NodeShutdown", "Pod was rejected as the node is shutting down."}
	}
	return nil
}

func system(p *v1.Pod, _ Node) *Refusal {
	if p.Spec.OS != nil && p.Spec.OS.Name != v1.Linux {
		return &Refusal{"PodOSNotSupported", fmt.Sprintf("spec.os.name is %s, and this node runs linux", p.Spec.OS.Name)}
	}
	if want := p.Spec.NodeSelector[v1.LabelOSStable]; want != "" && want != "linux" {
		return &Refusal{"PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	return nil
}

// safe sysctls are namespaced and bear on nobody else, see the documentation of sysctls.
var safe = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
	"net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

func sysctls(p *v1.Pod, n Node) *Refusal {
	if p.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range p.Spec.SecurityContext.Sysctls {
		name := strings.ReplaceAll(s.Name, "/", ".")
		if !slices.Contains(safe, name) && !slices.ContainsFunc(n.Sysctls, func(allowed string) bool { return allows(allowed, name) }) {
			return &Refusal{"SysctlForbidden", fmt.Sprintf("forbidden sysctl: %q not allowlisted", s.Name)}
		}
		if p.Spec.HostNetwork && strings.HasPrefix(name, "net.") {
			return &Refusal{"SysctlForbidden", fmt.Sprintf("forbidden sysctl: %q not allowed with host net enabled", s.Name)}
		}
	}
	return nil
}

func allows(allowed, name string) bool {
	if prefix, ok := strings.CutSuffix(allowed, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return allowed == name
}

// groups: a node that can't keep the groups of the image away must not run a pod that wants them away (KEP-3619).
func groups(p *v1.Pod, n Node) *Refusal {
	sc := p.Spec.SecurityContext
	if n.Object == nil || sc == nil || sc.SupplementalGroupsPolicy == nil || *sc.SupplementalGroupsPolicy != v1.SupplementalGroupsPolicyStrict {
		return nil
	}
	if f := n.Object.Status.Features; f != nil && f.SupplementalGroupsPolicy != nil && *f.SupplementalGroupsPolicy {
		return nil
	}
	return &Refusal{"SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node"}
}

// pressure keeps out what would make a shortage worse: of memory, pods that ask for none and may take any; of all else, every
// pod, as a node that is short of disk or process IDs has none for a new one.
func pressure(p *v1.Pod, n Node) *Refusal {
	var short []string
	for _, c := range []struct {
		is   bool
		name v1.NodeConditionType
	}{{n.Pressure.Memory, v1.NodeMemoryPressure}, {n.Pressure.Disk, v1.NodeDiskPressure}, {n.Pressure.PIDs, v1.NodePIDPressure}} {
		if c.is {
			short = append(short, string(c.name))
		}
	}
	memoryOnly := n.Pressure == Pressure{Memory: true}
	switch {
	case len(short) == 0, pod.IsCritical(p):
		return nil
	case memoryOnly && (pod.QoS(p) != v1.PodQOSBestEffort || tolerates(p, v1.TaintNodeMemoryPressure)):
		return nil
	}
	return &Refusal{"Evicted", fmt.Sprintf("The node had condition: %s. ", short)}
}

func tolerates(p *v1.Pod, key string) bool {
	taint := v1.Taint{Key: key, Effect: v1.TaintEffectNoSchedule}
	return slices.ContainsFunc(p.Spec.Tolerations, func(t v1.Toleration) bool { return matches(t, taint) })
}

func matches(t v1.Toleration, taint v1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	return t.Operator == v1.TolerationOpExists || ((t.Operator == "" || t.Operator == v1.TolerationOpEqual) && t.Value == taint.Value)
}

func affinity(p *v1.Pod, n Node) *Refusal {
	if pod.IsStatic(p) || n.Object == nil { // a manifest on a node is meant for this node
		return nil
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n.Object); err != nil || !ok {
		return &Refusal{ReasonAffinity, "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
	}
	return nil
}

func taints(p *v1.Pod, n Node) *Refusal {
	if pod.IsStatic(p) || n.Object == nil {
		return nil
	}
	for _, taint := range n.Object.Spec.Taints {
		tolerated := slices.ContainsFunc(p.Spec.Tolerations, func(t v1.Toleration) bool { return matches(t, taint) })
		if taint.Effect == v1.TaintEffectNoExecute && !tolerated {
			return &Refusal{"TaintToleration", fmt.Sprintf("Predicate TaintToleration failed: node(s) had untolerated taint(s) {%s: %s}", taint.Key, taint.Value)}
		}
	}
	return nil
}

func ports(p *v1.Pod, n Node) *Refusal {
	for _, port := range hostPorts(p) {
		for _, other := range n.Pods {
			if other.UID != p.UID && slices.ContainsFunc(hostPorts(other), port.meets) {
				return &Refusal{"NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"}
			}
		}
	}
	return nil
}

type hostPort struct {
	protocol v1.Protocol
	ip       string
	port     int32
}

func (a hostPort) meets(b hostPort) bool {
	return a.protocol == b.protocol && a.port == b.port && (anyIP(a.ip) || anyIP(b.ip) || a.ip == b.ip)
}

func anyIP(ip string) bool { return ip == "" || net.ParseIP(ip).IsUnspecified() }

func hostPorts(p *v1.Pod) []hostPort {
	var out []hostPort
	for c, kind := range pod.Containers(p) {
		if kind == pod.Init || kind == pod.Ephemeral {
			continue
		}
		for _, port := range c.Ports {
			if port.HostPort > 0 {
				out = append(out, hostPort{port.Protocol, port.HostIP, port.HostPort})
			}
		}
	}
	return out
}
