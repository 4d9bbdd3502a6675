// Package pod answers questions about pods that several parts of the kubelet ask: where a pod comes from, what kinds of
// containers it has, its QoS class and its conditions. It is pure.
package pod

import (
	"cmp"
	"iter"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Annotations by which a kubelet and an API server know static pods and their mirrors, see
// k8s.io/kubernetes/pkg/kubelet/types and the label reference of the Kubernetes documentation.
const (
	SourceAnnotation = "kubernetes.io/config.source" // FileSource, HTTPSource or APISource
	SeenAnnotation   = "kubernetes.io/config.seen"   // when this kubelet first saw the pod, RFC 3339
	HashAnnotation   = "kubernetes.io/config.hash"   // of a static pod's manifest; its UID
	MirrorAnnotation = v1.MirrorPodAnnotationKey     // on a mirror pod: the hash of the static pod that it mirrors
)

// What SourceAnnotation says.
const (
	FileSource = "file"
	HTTPSource = "http"
	APISource  = "api"
)

// IsStatic is true for a pod that comes from a file or a URL.
func IsStatic(p *v1.Pod) bool {
	source := p.Annotations[SourceAnnotation]
	return source == FileSource || source == HTTPSource
}

// IsMirror is true for an API server's picture of a static pod.
func IsMirror(p *v1.Pod) bool {
	_, ok := p.Annotations[MirrorAnnotation]
	return ok
}

// FullName is unique among the pods of a node at one time: "NAME_NAMESPACE".
func FullName(p *v1.Pod) string { return p.Name + "_" + p.Namespace }

// Ref is how logs name a pod: "NAMESPACE/NAME".
func Ref(p *v1.Pod) string { return p.Namespace + "/" + p.Name }

// UID is the pod's identity on this node. A mirror pod has the UID of its static pod here, since only that one runs.
func UID(p *v1.Pod) types.UID {
	if hash, ok := p.Annotations[MirrorAnnotation]; ok {
		return types.UID(hash)
	}
	return p.UID
}

// IsTerminal is true for a phase that a pod never leaves.
func IsTerminal(phase v1.PodPhase) bool { return phase == v1.PodSucceeded || phase == v1.PodFailed }

// SystemCriticalPriority is the least priority of the classes system-cluster-critical and system-node-critical.
const SystemCriticalPriority = 2_000_000_000

// IsCritical is true for a pod that is not evicted: a static or mirror pod, or one of a system class.
func IsCritical(p *v1.Pod) bool {
	return IsStatic(p) || IsMirror(p) || Priority(p) >= SystemCriticalPriority
}

// IsNodeCritical is true for the class system-node-critical.
func IsNodeCritical(p *v1.Pod) bool { return p.Spec.PriorityClassName == "system-node-critical" }

// Priority is 0 for a pod without one. A manifest may name a class, which an API server would turn into a number; those that
// every cluster has are known.
func Priority(p *v1.Pod) int32 {
	switch {
	case p.Spec.Priority != nil:
		return *p.Spec.Priority
	case p.Spec.PriorityClassName == "system-cluster-critical":
		return SystemCriticalPriority
	case IsNodeCritical(p):
		return SystemCriticalPriority + 1000
	}
	return 0
}

// HostNetwork is true if the pod runs in the network namespace of the node.
func HostNetwork(p *v1.Pod) bool { return p.Spec.HostNetwork }

// Kind is what part a container has in its pod.
type Kind int

// The kinds of containers.
const (
	Init      Kind = iota // runs to its end before the next one starts
	Sidecar               // an init container with restartPolicy Always (KEP-753)
	Main                  // of spec.containers
	Ephemeral             // joined later, for debugging
)

// Containers yields init containers and sidecars in their order, then the main ones, then the ephemeral ones, whose
// common fields are copied.
func Containers(p *v1.Pod) iter.Seq2[*v1.Container, Kind] {
	return func(yield func(*v1.Container, Kind) bool) {
		for i := range p.Spec.InitContainers {
			c := &p.Spec.InitContainers[i]
			if !yield(c, initKind(c)) {
				return
			}
		}
		for i := range p.Spec.Containers {
			if !yield(&p.Spec.Containers[i], Main) {
				return
			}
		}
		for i := range p.Spec.EphemeralContainers {
			c := v1.Container(p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
			if !yield(&c, Ephemeral) {
				return
			}
		}
	}
}

func initKind(c *v1.Container) Kind {
	if IsSidecar(c) {
		return Sidecar
	}
	return Init
}

// IsSidecar is true for an init container that is kept running beside the main ones.
func IsSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// Container finds a container by its name; nil if there is none.
func Container(p *v1.Pod, name string) (*v1.Container, Kind) {
	for c, kind := range Containers(p) {
		if c.Name == name {
			return c, kind
		}
	}
	return nil, Main
}

// QoS is the pod's quality of service class, from its status if it is there and else computed from the requests and
// limits of CPU and memory of the pod as a whole (KEP-2837) or of all its containers but ephemeral ones.
func QoS(p *v1.Pod) v1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	if resourcehelper.IsPodLevelResourcesSet(p) {
		return qosOf([]v1.ResourceRequirements{*p.Spec.Resources})
	}
	var all []v1.ResourceRequirements
	for c, kind := range Containers(p) {
		if kind != Ephemeral {
			all = append(all, c.Resources)
		}
	}
	return qosOf(all)
}

func qosOf(all []v1.ResourceRequirements) v1.PodQOSClass {
	guaranteed, bestEffort := true, true
	for _, r := range all {
		for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if !request.IsZero() || !limit.IsZero() {
				bestEffort = false
			}
			if limit.IsZero() || (!request.IsZero() && request.Cmp(limit) != 0) {
				guaranteed = false
			}
		}
	}
	switch {
	case bestEffort:
		return v1.PodQOSBestEffort
	case guaranteed:
		return v1.PodQOSGuaranteed
	}
	return v1.PodQOSBurstable
}

// Condition finds a condition; nil if it is not there.
func Condition(s *v1.PodStatus, kind v1.PodConditionType) *v1.PodCondition {
	i := slices.IndexFunc(s.Conditions, func(c v1.PodCondition) bool { return c.Type == kind })
	if i < 0 {
		return nil
	}
	return &s.Conditions[i]
}

// ContainerStatus finds the status of a container of any kind by its name; nil if it is not there.
func ContainerStatus(s *v1.PodStatus, name string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// GracePeriodSeconds is how long the pod's containers get to end: what the deletion asks for, or else the spec.
func GracePeriodSeconds(p *v1.Pod) int64 {
	const unset = 30 // the API's default
	grace := cmp.Or(p.DeletionGracePeriodSeconds, p.Spec.TerminationGracePeriodSeconds)
	if grace == nil {
		return unset
	}
	return *grace
}
