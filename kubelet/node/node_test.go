package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-helpers/node/util"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/kubelet/cluster"
)

// engine is a fake runtime.
type engine struct {
	err     error
	network bool
}

func (e *engine) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: e.network, Reason: "NoNetwork", Message: "no conf"},
		}},
		RuntimeHandlers: []*cri.RuntimeHandler{{Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}},
	}, e.err
}

func (e *engine) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "test", RuntimeVersion: "1.2"}, e.err
}

func (e *engine) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{Images: []*cri.Image{{RepoTags: []string{"small"}, Size: 1}, {RepoTags: []string{"large"}, RepoDigests: []string{"large@sha256:1"}, Size: 2}}}, e.err
}

// connect is a client of a test's API server.
func connect(t *testing.T, s *kubetest.Server) *cluster.Client {
	t.Helper()
	client, err := cluster.New(s.Client(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func manager(e *engine, client *cluster.Client, change func(*Config)) *Manager {
	cfg := Config{
		Name: "n", Hostname: "n", IPs: []net.IP{net.IPv4(192, 0, 2, 1)}, Register: true, Events: record.NewFakeRecorder(100), Port: 10250, MaxImages: 50,
		Info:     v1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64"},
		Capacity: v1.ResourceList{v1.ResourceCPU: resource.MustParse("2")}, Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1900m")},
		Every: 10 * time.Second, Report: 5 * time.Minute, LeaseSeconds: 40, Runtime: e,
		Pressure: func() Pressure { return Pressure{Disk: true} }, Healthy: func() error { return nil }, InUse: func() []v1.UniqueVolumeName { return nil },
		PodCIDR: func(context.Context, string) error { return nil }, Log: slog.New(slog.DiscardHandler), Client: client,
	}
	if change != nil {
		change(&cfg)
	}
	return New(cfg)
}

func TestStatus(t *testing.T) {
	e := &engine{network: true}
	m := manager(e, nil, nil)
	m.refresh(t.Context())
	s := m.Node().Status
	if s.Addresses[0].Address != "192.0.2.1" || s.Addresses[1].Type != v1.NodeHostName || s.NodeInfo.ContainerRuntimeVersion != "test://1.2" ||
		!strings.HasPrefix(s.NodeInfo.KubeletVersion, "v1.") || s.DaemonEndpoints.KubeletEndpoint.Port != 10250 || s.Allocatable.Cpu().String() != "1900m" {
		t.Errorf("%+v", s)
	}
	if !slices.Contains(s.DeclaredFeatures, "RestartAllContainersOnContainerExits") {
		t.Errorf("the scheduler keeps pods away that need more than %v", s.DeclaredFeatures)
	}
	if len(s.Images) != 2 || s.Images[0].Names[0] != "large@sha256:1" {
		t.Errorf("images %v", s.Images)
	}
	if !m.RecursiveReadOnly("") || m.RecursiveReadOnly("other") {
		t.Error("the handlers' features are not known")
	}
	for kind, want := range map[v1.NodeConditionType]string{
		v1.NodeReady: "True KubeletReady", v1.NodeDiskPressure: "True KubeletHasDiskPressure",
		v1.NodeMemoryPressure: "False KubeletHasSufficientMemory", v1.NodePIDPressure: "False KubeletHasSufficientPID",
	} {
		_, c := util.GetNodeCondition(&s, kind)
		if c == nil || string(c.Status)+" "+c.Reason != want {
			t.Errorf("%s: %+v, want %s", kind, c, want)
		}
	}
	e.network = false
	m.refresh(t.Context())
	_, c := util.GetNodeCondition(&m.Node().Status, v1.NodeReady)
	if c.Status != v1.ConditionFalse || c.Reason != "KubeletNotReady" ||
		c.Message != "container runtime network not ready: NetworkReady=false reason:NoNetwork message:no conf" || m.NetworkReady() == nil {
		t.Errorf("without a network: %+v", c)
	}
	e.err = errors.New("connection refused")
	m.refresh(t.Context())
	if _, c := util.GetNodeCondition(&m.Node().Status, v1.NodeReady); !strings.Contains(c.Message, "container runtime is down") {
		t.Errorf("without a runtime: %+v", c)
	}
	if m.Node().Status.NodeInfo.ContainerRuntimeVersion != "test://1.2" || len(m.Node().Status.Images) != 2 {
		t.Error("what was known of the runtime is forgotten")
	}
}

func TestRegister(t *testing.T) {
	client := connect(t, kubetest.New(t))
	m := manager(&engine{network: true}, client, func(c *Config) {
		c.Labels, c.Taints = map[string]string{"a": "b"}, []v1.Taint{{Key: "k", Effect: v1.TaintEffectNoSchedule}}
	})
	m.refresh(t.Context())
	if m.Registered() != nil {
		t.Error("it is registered before it is")
	}
	if err := m.tryRegister(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := client.Nodes.All().Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil || n.Labels["a"] != "b" || n.Labels[v1.LabelHostname] != "n" || len(n.Spec.Taints) != 1 || n.Annotations[attachAnnotation] != "true" {
		t.Errorf("%+v, %v", n, err)
	}
}

// TestRegisterAgain: a node that was there keeps what people gave it.
func TestRegisterAgain(t *testing.T) {
	server := kubetest.New(t)
	server.Set(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"mine": "1", v1.LabelHostname: "old"}}, Spec: v1.NodeSpec{Unschedulable: true}})
	client := connect(t, server)
	m := manager(&engine{network: true}, client, nil)
	if err := m.tryRegister(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, _ := client.Nodes.All().Get(t.Context(), "n", metav1.GetOptions{})
	if n.Labels["mine"] != "1" || n.Labels[v1.LabelHostname] != "n" || !n.Spec.Unschedulable {
		t.Errorf("%+v", n)
	}
}

// TestEvents: what `kubectl describe node` shows of a start, of a reboot and of a cordon.
func TestEvents(t *testing.T) {
	server := kubetest.New(t)
	client := connect(t, server)
	events := record.NewFakeRecorder(100)
	begin := func(boot string) *Manager {
		m := manager(&engine{network: true}, client, func(c *Config) { c.Events, c.Info.BootID = events, boot })
		m.refresh(t.Context())
		if err := m.tryRegister(t.Context()); err != nil {
			t.Fatal(err)
		}
		return m
	}
	told := func() (reasons []string) {
		for {
			select {
			case e := <-events.Events:
				reasons = append(reasons, strings.Fields(e)[1])
			default:
				return reasons
			}
		}
	}
	pressures := []string{"NodeHasSufficientMemory", "NodeHasDiskPressure", "NodeHasSufficientPID"}
	begin("one")
	if diff := cmp.Diff(append(pressures, "NodeReady"), told()); diff != "" {
		t.Errorf("a first start (-want +got):\n%s", diff)
	}
	begin("one")
	if diff := cmp.Diff(pressures, told()); diff != "" {
		t.Errorf("a second start (-want +got):\n%s", diff)
	}
	m := begin("two")
	if diff := cmp.Diff(append(pressures, "Rebooted"), told()); diff != "" {
		t.Errorf("a start after a reboot (-want +got):\n%s", diff)
	}
	n := m.Node().DeepCopy()
	for _, cordoned := range []bool{true, true, false} {
		n.Spec.Unschedulable = cordoned
		m.take(n)
	}
	if diff := cmp.Diff([]string{"NodeNotSchedulable", "NodeSchedulable"}, told()); diff != "" {
		t.Errorf("a cordon (-want +got):\n%s", diff)
	}
}

// TestDeleted: a Node that somebody deleted is registered anew, with nothing of the old one but what is true.
func TestDeleted(t *testing.T) {
	client := connect(t, kubetest.New(t))
	m := manager(&engine{network: true}, client, nil)
	m.refresh(t.Context())
	if err := m.tryRegister(t.Context()); err != nil {
		t.Fatal(err)
	}
	nodes := client.Nodes.All()
	old, _ := nodes.Get(t.Context(), "n", metav1.GetOptions{})
	old.Labels["mine"] = "1"
	old.Status.VolumesAttached = []v1.AttachedVolume{{Name: "disk"}}
	m.take(old)
	if err := nodes.Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	m.send(t.Context())
	n, err := nodes.Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil || n.UID == old.UID || n.Labels["mine"] != "" || n.Labels[v1.LabelHostname] != "n" || len(n.Status.VolumesAttached) > 0 || len(n.Status.Conditions) != 4 {
		t.Errorf("%+v, %v", n, err)
	}
	if m.Registered().UID != n.UID {
		t.Error("it is the old one, to this kubelet")
	}
}

// TestSend: a status is sent when it changed, with others' conditions kept, and not when only the time went on.
func TestSend(t *testing.T) {
	server := kubetest.New(t)
	client := connect(t, server)
	e := &engine{network: true}
	m := manager(e, client, nil)
	m.refresh(t.Context())
	if err := m.tryRegister(t.Context()); err != nil {
		t.Fatal(err)
	}
	nodes := client.Nodes.All()
	n, _ := nodes.Get(t.Context(), "n", metav1.GetOptions{})
	n.Status.Conditions = append(n.Status.Conditions, v1.NodeCondition{Type: "example.com/Other", Status: v1.ConditionTrue})
	if _, err := nodes.Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.refresh(t.Context())
	m.send(t.Context())
	patches := func() (count int) {
		for _, r := range server.Requests("nodes") {
			if strings.HasPrefix(r, "PATCH /api/v1/nodes/n/status") {
				count++
			}
		}
		return count
	}
	before := patches()
	m.refresh(t.Context())
	m.send(t.Context())
	if got := patches(); got != before {
		t.Errorf("nothing changed, and %d statuses were sent", got-before)
	}
	e.network = false
	m.refresh(t.Context())
	m.send(t.Context())
	n, _ = nodes.Get(t.Context(), "n", metav1.GetOptions{})
	_, ready := util.GetNodeCondition(&n.Status, v1.NodeReady)
	_, other := util.GetNodeCondition(&n.Status, "example.com/Other")
	if ready == nil || ready.Status != v1.ConditionFalse || other == nil {
		t.Errorf("Ready is %+v, the other one %+v", ready, other)
	}
}
