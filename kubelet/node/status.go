package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// attachAnnotation says that the control plane attaches volumes, not the node.
const attachAnnotation = "volumes.kubernetes.io/controller-managed-attach-detach"

// givenAnnotation tells a cloud controller manager which addresses the node shall have.
const givenAnnotation = "alpha.kubernetes.io/provided-node-ip"

// ownLabels are set by the kubelet at each start.
var ownLabels = []string{
	v1.LabelHostname, v1.LabelOSStable, v1.LabelArchStable, "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
}

// initial is the Node as it is registered.
func (m *Manager) initial() *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: m.cfg.Name,
		Labels: map[string]string{
			v1.LabelHostname: m.cfg.Hostname, v1.LabelOSStable: m.cfg.Info.OperatingSystem, v1.LabelArchStable: m.cfg.Info.Architecture,
			"beta.kubernetes.io/os": m.cfg.Info.OperatingSystem, "beta.kubernetes.io/arch": m.cfg.Info.Architecture,
		},
		Annotations: map[string]string{attachAnnotation: "true"},
	}}
	maps.Copy(n.Labels, m.cfg.Labels)
	n.Spec.ProviderID = m.cfg.ProviderID
	n.Spec.Taints = slices.Clone(m.cfg.Taints)
	if m.cfg.CloudProvider { // until its controller has looked at the node
		n.Spec.Taints = append(n.Spec.Taints, v1.Taint{Key: "node.cloudprovider.kubernetes.io/uninitialized", Value: "true", Effect: v1.TaintEffectNoSchedule})
		if m.cfg.GivenIPs {
			n.Annotations[givenAnnotation] = m.ipList()
		}
	}
	return n
}

// refresh computes the status.
func (m *Manager) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Every)
	defer cancel()
	reply, statusErr := m.cfg.Runtime.Status(ctx, &cri.StatusRequest{})
	version, versionErr := m.cfg.Runtime.Version(ctx, &cri.VersionRequest{})
	images := m.images(ctx)

	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.node.DeepCopy()
	s := &n.Status
	m.addresses(s)
	m.resources(s)
	s.NodeInfo = m.cfg.Info
	s.NodeInfo.KubeletVersion = kubeletVersion
	s.NodeInfo.KubeProxyVersion = ""
	if m.cfg.Swap > 0 {
		s.NodeInfo.Swap = &v1.NodeSwapStatus{Capacity: &m.cfg.Swap}
	}
	if versionErr == nil {
		s.NodeInfo.ContainerRuntimeVersion = version.RuntimeName + "://" + version.RuntimeVersion
	} else {
		s.NodeInfo.ContainerRuntimeVersion = m.node.Status.NodeInfo.ContainerRuntimeVersion
	}
	s.DaemonEndpoints.KubeletEndpoint.Port = m.cfg.Port
	if images != nil {
		s.Images = images
	}
	if statusErr == nil {
		m.handlersLocked(s, reply)
	}
	m.network = networkError(reply, statusErr)
	m.conditionsLocked(s, runtimeError(reply, statusErr), m.network)
	s.VolumesInUse = m.cfg.InUse()
	m.node = n
}

func (m *Manager) addresses(s *v1.NodeStatus) {
	if m.cfg.CloudProvider && len(s.Addresses) > 0 {
		return // the cloud's controller has given them
	}
	s.Addresses = nil
	if !m.cfg.CloudProvider || m.cfg.GivenIPs { // those that were chosen count until the controller has given its own
		for _, ip := range m.cfg.IPs {
			s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: ip.String()})
		}
	}
	s.Addresses = append(s.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: m.cfg.Hostname})
}

// ipList is the addresses with commas between.
func (m *Manager) ipList() string {
	var ips []string
	for _, ip := range m.cfg.IPs {
		ips = append(ips, ip.String())
	}
	return strings.Join(ips, ",")
}

// resources sets ours, and leaves those that device plugins and administrators have added.
func (m *Manager) resources(s *v1.NodeStatus) {
	s.Capacity = ownResources(s.Capacity, m.cfg.Capacity)
	s.Allocatable = ownResources(s.Capacity, m.cfg.Allocatable)
}

func isOwnResource(name v1.ResourceName) bool {
	switch name {
	case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, v1.ResourcePods:
		return true
	}
	return strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix)
}

// maxImageNames is how many names of one image are told.
const maxImageNames = 5

// images are the largest ones, with digests before tags; nil if they are not known now.
func (m *Manager) images(ctx context.Context) []v1.ContainerImage {
	reply, err := m.cfg.Runtime.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return nil
	}
	out := []v1.ContainerImage{}
	for _, i := range reply.Images {
		names := append(slices.Clone(i.RepoDigests), i.RepoTags...)
		out = append(out, v1.ContainerImage{Names: names[:min(len(names), maxImageNames)], SizeBytes: int64(i.Size)})
	}
	slices.SortStableFunc(out, func(a, b v1.ContainerImage) int { return cmp.Compare(b.SizeBytes, a.SizeBytes) })
	if m.cfg.MaxImages >= 0 {
		out = out[:min(len(out), m.cfg.MaxImages)]
	}
	return out
}

func (m *Manager) handlersLocked(s *v1.NodeStatus, reply *cri.StatusResponse) {
	s.RuntimeHandlers = nil
	for _, h := range reply.RuntimeHandlers {
		m.features[h.Name] = h.Features
		handler := v1.NodeRuntimeHandler{Name: h.Name}
		if f := h.Features; f != nil {
			handler.Features = &v1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &f.RecursiveReadOnlyMounts, UserNamespaces: &f.UserNamespaces}
		}
		s.RuntimeHandlers = append(s.RuntimeHandlers, handler)
	}
	slices.SortFunc(s.RuntimeHandlers, func(a, b v1.NodeRuntimeHandler) int { return cmp.Compare(a.Name, b.Name) })
	if f := reply.Features; f != nil {
		s.Features = &v1.NodeFeatures{SupplementalGroupsPolicy: &f.SupplementalGroupsPolicy}
	}
	s.DeclaredFeatures = declared(reply.Features)
}

// declared are the features that the scheduler and the API server want a node to declare, by kubelet's names, before they give
// it a pod that needs them (KEP-5328); those that we have, sorted.
func declared(f *cri.RuntimeFeatures) []string {
	names := []string{"InPlacePodVerticalScalingInitContainers", "RestartAllContainersOnContainerExits"}
	if f.GetUserNamespacesHostNetwork() {
		names = append(names, "UserNamespacesHostNetworkSupport")
	}
	return names
}

func condition(reply *cri.StatusResponse, kind string) *cri.RuntimeCondition {
	for _, c := range reply.GetStatus().GetConditions() {
		if c.Type == kind {
			return c
		}
	}
	return nil
}

func runtimeError(reply *cri.StatusResponse, err error) error {
	if err != nil {
		return fmt.Errorf("container runtime is down: %w", err)
	}
	if c := condition(reply, "RuntimeReady"); c == nil || !c.Status {
		return fmt.Errorf("container runtime not ready: RuntimeReady=false reason:%s message:%s", c.GetReason(), c.GetMessage())
	}
	return nil
}

func networkError(reply *cri.StatusResponse, err error) error {
	if err != nil {
		return fmt.Errorf("container runtime is down: %w", err)
	}
	if c := condition(reply, "NetworkReady"); c == nil || !c.Status {
		return fmt.Errorf("container runtime network not ready: NetworkReady=false reason:%s message:%s", c.GetReason(), c.GetMessage())
	}
	return nil
}

// conditionsLocked sets the four conditions of the kubelet. Ready is the last one.
func (m *Manager) conditionsLocked(s *v1.NodeStatus, problems ...error) {
	p := m.cfg.Pressure()
	m.conditionLocked(s, pressure(v1.NodeMemoryPressure, p.Memory, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available",
		"KubeletHasSufficientMemory", "kubelet has sufficient memory available"))
	m.conditionLocked(s, pressure(v1.NodeDiskPressure, p.Disk, "KubeletHasDiskPressure", "kubelet has disk pressure",
		"KubeletHasNoDiskPressure", "kubelet has no disk pressure"))
	m.conditionLocked(s, pressure(v1.NodePIDPressure, p.PIDs, "KubeletHasInsufficientPID", "kubelet has insufficient PID available",
		"KubeletHasSufficientPID", "kubelet has sufficient PID available"))
	ready := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	// An aggregate names each problem once: a runtime that is down is also why there is no network.
	if err := utilerrors.NewAggregate(append(problems, m.cfg.Healthy())); err != nil {
		ready.Status, ready.Reason, ready.Message = v1.ConditionFalse, "KubeletNotReady", err.Error()
	}
	m.conditionLocked(s, ready)
}

func pressure(kind v1.NodeConditionType, on bool, badReason, badMessage, goodReason, goodMessage string) v1.NodeCondition {
	if on {
		return v1.NodeCondition{Type: kind, Status: v1.ConditionTrue, Reason: badReason, Message: badMessage}
	}
	return v1.NodeCondition{Type: kind, Status: v1.ConditionFalse, Reason: goodReason, Message: goodMessage}
}

// conditionLocked sets one condition, with the time at which it changed, and an event if it did.
func (m *Manager) conditionLocked(s *v1.NodeStatus, c v1.NodeCondition) {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	c.LastHeartbeatTime, c.LastTransitionTime = now, now
	i := indexOf(s.Conditions, c.Type)
	if i < 0 {
		s.Conditions = append(s.Conditions, c)
		if c.Type != v1.NodeReady { // which adopt tells, if it is news to the API server
			m.statusEvent(eventReason(c))
		}
		return
	}
	if old := s.Conditions[i]; old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	} else {
		m.statusEvent(eventReason(c))
	}
	s.Conditions[i] = c
}

func (m *Manager) statusEvent(reason string) {
	m.event(v1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", m.cfg.Name, reason))
}

func (m *Manager) event(kind, reason, message string) {
	m.cfg.Events.Event(Reference(m.cfg.Name), kind, reason, message)
}

// eventReason is what kubelet's event says of a condition that changed.
func eventReason(c v1.NodeCondition) string {
	if c.Type != v1.NodeReady {
		return strings.Replace(c.Reason, "Kubelet", "Node", 1)
	}
	if c.Status == v1.ConditionTrue {
		return "NodeReady"
	}
	return "NodeNotReady"
}

// Reference names a node in events. Its UID is its name, by which kubectl finds a kubelet's events even if the Node was made
// anew.
func Reference(name string) *v1.ObjectReference {
	return &v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)}
}
