package kubelet

import (
	"fmt"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

// containerEvent records an event about one container of a pod.
func (k *Kubelet) containerEvent(p *v1.Pod, c *v1.Container, kind, reason, message string) {
	k.cfg.Events.Event(reference(p, c), kind, reason, message)
}

// reference names a container in its pod, as events do.
func reference(p *v1.Pod, c *v1.Container) *v1.ObjectReference {
	ref := &v1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}
	if c == nil {
		return ref
	}
	field := "containers"
	switch _, of := pod.Container(p, c.Name); of {
	case pod.Init, pod.Sidecar:
		field = "initContainers"
	case pod.Ephemeral:
		field = "ephemeralContainers"
	}
	ref.FieldPath = fmt.Sprintf("spec.%s{%s}", field, c.Name)
	return ref
}

// nodeHosts is the node's hosts file, for pods that share its network.
func nodeHosts(p *v1.Pod) string {
	if !p.Spec.HostNetwork {
		return ""
	}
	data, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(data), "\n") + "\n"
}
