package admit

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

func podWith(change func(p *v1.Pod)) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "p"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c"}}}}
	change(p)
	return p
}

func request(name v1.ResourceName, amount string) func(p *v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{name: resource.MustParse(amount)}
	}
}

func cpu(amount string) func(p *v1.Pod) { return request(v1.ResourceCPU, amount) }

func strict(p *v1.Pod) {
	p.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroupsPolicy: new(v1.SupplementalGroupsPolicyStrict)}
}

func port(host string, number int32) func(p *v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostIP: host, HostPort: number, Protocol: v1.ProtocolTCP}}
	}
}

func sysctl(name string) func(p *v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: name, Value: "1"}}}
	}
}

func TestCheck(t *testing.T) {
	object := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"disk": "fast"}},
		Spec:       v1.NodeSpec{Taints: []v1.Taint{{Key: "bad", Value: "yes", Effect: v1.TaintEffectNoExecute}}},
		Status:     v1.NodeStatus{Allocatable: v1.ResourceList{"example.com/gpu": resource.MustParse("1")}},
	}
	other := podWith(cpu("1500m"))
	other.UID = "other"
	port("", 80)(other)
	node := Node{
		Object: object, Pods: []*v1.Pod{other}, Sysctls: []string{"kernel.msg*"},
		Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourcePods: resource.MustParse("10")},
	}
	tolerant := func(p *v1.Pod) { p.Spec.Tolerations = []v1.Toleration{{Operator: v1.TolerationOpExists}} }
	for _, tt := range []struct {
		name   string
		change func(p *v1.Pod)
		node   func(n *Node)
		want   string // the reason, "" for none
	}{
		{"fits", cpu("500m"), nil, ""},
		{"too much CPU", cpu("600m"), nil, "OutOfcpu"},
		{"a resource of the cluster", request("example.com/licence", "1"), nil, ""},
		{"a resource that the API server knows of the node", request("example.com/gpu", "1"), nil, ""},
		{"too much of it", request("example.com/gpu", "2"), nil, "OutOfexample.com/gpu"},
		{"huge pages that the node has not", request("hugepages-2Mi", "2Mi"), nil, "OutOfhugepages-2Mi"},
		{"too many pods", cpu("0"), func(n *Node) { n.Allocatable = v1.ResourceList{v1.ResourcePods: resource.MustParse("1")} }, "OutOfpods"},
		{"port is taken", port("127.0.0.1", 80), nil, "NodePorts"},
		{"port is free", port("", 81), nil, ""},
		{"other label", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "slow"} }, nil, "NodeAffinity"},
		{"label", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "fast"} }, nil, ""},
		{"taint", func(p *v1.Pod) { p.Spec.Tolerations = nil }, nil, "TaintToleration"},
		{"static pods know no taints", func(p *v1.Pod) {
			p.Spec.Tolerations, p.Annotations = nil, map[string]string{pod.SourceAnnotation: pod.FileSource}
		}, nil, ""},
		{"safe sysctl", sysctl("net.ipv4.tcp_syncookies"), nil, ""},
		{"allowed sysctl", sysctl("kernel/msgmax"), nil, ""},
		{"forbidden sysctl", sysctl("kernel.sem"), nil, "SysctlForbidden"},
		{"network sysctl of the node", func(p *v1.Pod) { sysctl("net.ipv4.tcp_syncookies")(p); p.Spec.HostNetwork = true }, nil, "SysctlForbidden"},
		{"other system", func(p *v1.Pod) { p.Spec.OS = &v1.PodOS{Name: v1.Windows} }, nil, "PodOSNotSupported"},
		{"shutting down", cpu("0"), func(n *Node) { n.ShuttingDown = true }, "NodeShutdown"},
		{"best effort under pressure", func(p *v1.Pod) { p.Spec.Tolerations = []v1.Toleration{{Key: "bad", Operator: v1.TolerationOpExists}} }, func(n *Node) { n.Pressure.Memory = true }, "Evicted"},
		{"burstable under pressure", cpu("100m"), func(n *Node) { n.Pressure.Memory = true }, ""},
		{"burstable on a full disk", cpu("100m"), func(n *Node) { n.Pressure.Disk = true }, "Evicted"},
		{"critical on a full disk", func(p *v1.Pod) { p.Spec.Priority = new(int32(2e9)) }, func(n *Node) { n.Pressure.Disk = true }, ""},
		{"groups that can't be kept away", strict, nil, "SupplementalGroupsPolicyNotSupported"},
		{"groups that can", strict, func(n *Node) {
			n.Object = n.Object.DeepCopy()
			n.Object.Status.Features = &v1.NodeFeatures{SupplementalGroupsPolicy: new(true)}
		}, ""},
	} {
		n := node
		if tt.node != nil {
			tt.node(&n)
		}
		r := Check(podWith(func(p *v1.Pod) { tolerant(p); tt.change(p) }), n)
		switch {
		case r == nil && tt.want != "":
			t.Errorf("%s: admitted, want %s", tt.name, tt.want)
		case r != nil && (r.Reason != tt.want || r.Message == ""):
			t.Errorf("%s: %s: %s, want %q", tt.name, r.Reason, r.Message, tt.want)
		}
	}
}
