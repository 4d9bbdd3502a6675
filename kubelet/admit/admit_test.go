package admit

import (
	"strings"
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

func cpu(amount string) func(p *v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse(amount)}
	}
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
		{"unknown resource", func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Requests = v1.ResourceList{"example.com/gpu": resource.MustParse("1")}
		}, nil, "OutOfexample.com/gpu"},
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
		{"best effort under pressure", func(p *v1.Pod) { p.Spec.Tolerations = []v1.Toleration{{Key: "bad", Operator: v1.TolerationOpExists}} }, func(n *Node) { n.Pressure = true }, "Evicted"},
		{"burstable under pressure", cpu("100m"), func(n *Node) { n.Pressure = true }, ""},
	} {
		n := node
		if tt.node != nil {
			tt.node(&n)
		}
		r := Check(podWith(func(p *v1.Pod) { tolerant(p); tt.change(p) }), n)
		switch {
		case r == nil && tt.want != "":
			t.Errorf("%s: admitted, want %s", tt.name, tt.want)
		case r != nil && (r.Reason != tt.want || !strings.HasPrefix(r.Message, "Pod was rejected: ")):
			t.Errorf("%s: %s: %s, want %q", tt.name, r.Reason, r.Message, tt.want)
		}
	}
}
