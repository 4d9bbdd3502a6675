package kubelet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// portrait is what `kubectl describe node` shows of a kubelet, without what changes by itself.
type portrait struct {
	Labels, Annotations   map[string]string
	Taints                []string
	Conditions            map[v1.NodeConditionType]string
	Addresses             []v1.NodeAddress
	Capacity, Allocatable map[v1.ResourceName]int64
	System                v1.NodeSystemInfo
	Endpoints             v1.NodeDaemonEndpoints
	Images                []string
	Handlers              []v1.NodeRuntimeHandler
	Features              *v1.NodeFeatures
	Events                []string
	Sections              []string // of the command's output, with the keys below them
}

// portray has a kubelet make its Node anew and looks at that.
func portray(s *space, which *subject) portrait {
	s.Helper()
	if err := control.Kill(logName); err != nil {
		s.Fatal(err)
	}
	began := metav1.Now().Rfc3339Copy()
	s.kubectl("delete", "node", nodeName)
	if err := which.start(); err != nil {
		s.Fatal(err)
	}
	if err := waitReady(s.Context()); err != nil {
		s.Fatal(err)
	}
	var p portrait
	s.eventually("the taints of a new node to go", func() error {
		n, err := control.Client.CoreV1().Nodes().Get(s.Context(), nodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		p = ofNode(n)
		if len(p.Taints) > 0 || n.Status.NodeInfo.KubeletVersion == "" || len(p.Images) == 0 {
			return fmt.Errorf("taints %v, %d images", p.Taints, len(p.Images))
		}
		return nil
	})
	s.eventually("the events of the kubelet's start, and its lease", func() error {
		p.Events = nodeEvents(s, began)
		if !slices.ContainsFunc(p.Events, func(e string) bool { return strings.Contains(e, " NodeReady ") }) {
			return fmt.Errorf("there are %v", p.Events)
		}
		_, err := control.Client.CoordinationV1().Leases("kube-node-lease").Get(s.Context(), nodeName, metav1.GetOptions{})
		return err
	})
	p.Sections = sections(s.kubectl("describe", "node", nodeName))
	return p
}

// sections are the headings and keys of what is described, without what differs from time to time.
func sections(text string) (out []string) {
	text, _, _ = strings.Cut(text, "\nEvents:")
	for line := range strings.Lines(text) {
		key, _, isKey := strings.Cut(line, ":")
		if strings.HasPrefix(line, "  ") && strings.Contains(strings.TrimSpace(key), "  ") { // a row of a table
			key, isKey = strings.Fields(line)[0], true
		}
		if isKey && !strings.Contains(key, "/") { // a label is no key
			out = append(out, strings.TrimRight(key, " "))
		}
	}
	return out
}

func ofNode(n *v1.Node) portrait {
	p := portrait{
		Labels: n.Labels, Annotations: n.Annotations, Addresses: n.Status.Addresses, System: n.Status.NodeInfo, Endpoints: n.Status.DaemonEndpoints,
		Handlers: n.Status.RuntimeHandlers, Features: n.Status.Features, Conditions: map[v1.NodeConditionType]string{},
		Capacity: amounts(n.Status.Capacity), Allocatable: amounts(n.Status.Allocatable),
	}
	for _, c := range n.Status.Conditions {
		p.Conditions[c.Type] = fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
	}
	for _, t := range n.Spec.Taints {
		p.Taints = append(p.Taints, t.ToString())
	}
	for _, i := range n.Status.Images {
		p.Images = append(p.Images, fmt.Sprint(i.Names, i.SizeBytes))
	}
	return p
}

// amounts are in thousandths or in millions: a share of the disk that is reserved is rounded in different ways.
func amounts(list v1.ResourceList) map[v1.ResourceName]int64 {
	out := map[v1.ResourceName]int64{}
	for name, q := range list {
		if name == v1.ResourceCPU {
			out[name] = q.MilliValue()
		} else {
			out[name] = q.ScaledValue(resource.Mega)
		}
	}
	return out
}

// nodeEvents are the kubelet's events about the node since a time, sorted, each once; but for the warning of cgroup v1, on
// which only one of them frowns.
func nodeEvents(s *space, since metav1.Time) []string {
	list, err := control.Client.CoreV1().Events(metav1.NamespaceDefault).List(s.Context(), metav1.ListOptions{})
	if err != nil {
		s.Fatal(err)
	}
	found := map[string]bool{}
	for _, e := range list.Items {
		if e.Reason != "CgroupV1" && e.InvolvedObject.Kind == "Node" && e.InvolvedObject.Name == nodeName && e.Source.Component == "kubelet" && !e.LastTimestamp.Before(&since) {
			found[fmt.Sprintf("%s %s %s", e.Type, e.Reason, e.Message)] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// TestDescribeNode compares what is told of the node with what the other kubelet tells on the same machine.
func TestDescribeNode(t *testing.T) {
	s := alone(t)
	removeTraces(t)
	other := portray(s, otherKubelet(t))
	own := portray(s, node)
	if diff := cmp.Diff(other, own); diff != "" {
		t.Errorf("the node as the other kubelet tells of it (-) and as this one does (+):\n%s", diff)
	}
}
