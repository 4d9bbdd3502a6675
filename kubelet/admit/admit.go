// Package admit decides whether a pod may run on the node at all: the last check, after the scheduler's, and the only one
// for static pods. It is pure. Reasons are kubelet's, since controllers and people read them.
package admit

import (
	"fmt"
	"net"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/orlop/orlop/kubelet/pod"
)

// Refusal is why a pod may not run here.
type Refusal struct{ Reason, Message string }

// Node is where pods shall run.
type Node struct {
	Object      *v1.Node
	Allocatable v1.ResourceList
	Pods        []*v1.Pod // that were admitted and have not ended
	Sysctls     []string  // allowedUnsafeSysctls; "net.*" allows all that begin so
	// Pressure is true while the node is short of memory, and takes no BestEffort pods.
	Pressure bool
	// ShuttingDown is true once the machine is about to stop.
	ShuttingDown bool
}

// Check returns nil if the pod may run.
func Check(p *v1.Pod, n Node) *Refusal {
	for _, check := range []func(*v1.Pod, Node) *Refusal{shutdown, system, sysctls, pressure, affinity, taints, ports, resources} {
		if r := check(p, n); r != nil {
			r.Message = "Pod was rejected: " + r.Message
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

func pressure(p *v1.Pod, n Node) *Refusal {
	if !n.Pressure || pod.IsCritical(p) || pod.QoS(p) != v1.PodQOSBestEffort || tolerates(p, v1.TaintNodeMemoryPressure) {
		return nil
	}
	return &Refusal{"Evicted", "The node had condition: [MemoryPressure]. "}
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
		return &Refusal{"NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
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

func resources(p *v1.Pod, n Node) *Refusal {
	if count := n.Allocatable.Pods().Value(); count > 0 && int64(len(n.Pods)) >= count && !slices.ContainsFunc(n.Pods, func(o *v1.Pod) bool { return o.UID == p.UID }) {
		return short("pods", 1, int64(len(n.Pods)), count)
	}
	used := v1.ResourceList{}
	for _, other := range n.Pods {
		if other.UID == p.UID {
			continue
		}
		for name, q := range resourcehelper.PodRequests(other, resourcehelper.PodResourcesOptions{}) {
			sum := used[name]
			sum.Add(q)
			used[name] = sum
		}
	}
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	for _, name := range sorted(requests) {
		has, known := n.Allocatable[name]
		request, taken := requests[name], used[name]
		if !known && (request.IsZero() || name == v1.ResourceEphemeralStorage) {
			continue
		}
		sum := taken.DeepCopy()
		sum.Add(request)
		if sum.Cmp(has) > 0 && !request.IsZero() {
			if name == v1.ResourceCPU {
				return short(string(name), request.MilliValue(), taken.MilliValue(), has.MilliValue())
			}
			return short(string(name), request.Value(), taken.Value(), has.Value())
		}
	}
	return nil
}

func sorted(list v1.ResourceList) []v1.ResourceName {
	var names []v1.ResourceName
	for name := range list {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func short(name string, requested, used, capacity int64) *Refusal {
	return &Refusal{"OutOf" + name, fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, requested, used, capacity)}
}
