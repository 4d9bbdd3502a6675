package watch

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/watch"
	"github.com/orlop/orlop/test/cluster"
	"github.com/orlop/orlop/test/criclient"
)

const patience = 60 * time.Second

// sink knows what it was told last.
type sink struct {
	mu       sync.Mutex
	services map[model.Name]*model.Service
	slices   map[model.Name]*model.Slice
	node     watch.Node
	cidrs    []netip.Prefix
	synced   map[watch.Kind]bool
}

func (s *sink) locked(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

func (s *sink) SetService(v *model.Service)        { s.locked(func() { s.services[v.Name] = v }) }
func (s *sink) DeleteService(n model.Name)         { s.locked(func() { delete(s.services, n) }) }
func (s *sink) SetSlice(v *model.Slice)            { s.locked(func() { s.slices[v.Name] = v }) }
func (s *sink) DeleteSlice(_, n model.Name)        { s.locked(func() { delete(s.slices, n) }) }
func (s *sink) SetNode(n watch.Node)               { s.locked(func() { s.node = n }) }
func (s *sink) SetServiceCIDRs(all []netip.Prefix) { s.locked(func() { s.cidrs = all }) }
func (s *sink) Triggered(time.Time)                {}
func (s *sink) Synced(k watch.Kind)                { s.locked(func() { s.synced[k] = true }) }

func (s *sink) await(t *testing.T, what string, is func() bool) {
	t.Helper()
	err := criclient.Wait(t.Context(), patience, func() (ok bool) {
		s.locked(func() { ok = is() })
		return ok
	})
	if err != nil {
		t.Fatalf("%s: %v; services %v, slices %v, node %+v, CIDRs %v, synced %v", what, err, s.services, s.slices, s.node, s.cidrs, s.synced)
	}
}

// asked notes requests.
type asked struct {
	mu   sync.Mutex
	urls []string
}

func (a *asked) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		a.mu.Lock()
		a.urls = append(a.urls, r.Method+" "+r.URL.RequestURI())
		a.mu.Unlock()
		return next.RoundTrip(r)
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// follow follows the API server, with the rights that kube-proxy has.
func follow(t *testing.T, node string) (*sink, *asked) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", control.Kubeconfig("admin"))
	if err != nil {
		t.Fatal(err)
	}
	requests := &asked{}
	config.Impersonate = rest.ImpersonationConfig{UserName: "system:kube-proxy", Groups: []string{"system:authenticated"}}
	config.Wrap(requests.wrap)
	client, err := kube.New(config)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	events, err := kube.NewRecorder(client, "orlop-proxy", node, log)
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{services: map[model.Name]*model.Service{}, slices: map[model.Name]*model.Slice{}, synced: map[watch.Kind]bool{}}
	api := &watch.API{Client: client, Node: node, NeedPodCIDRs: true, WantServiceCIDRs: true, Events: events, Log: log}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := api.Run(ctx, s); err != nil {
			t.Error(err)
		}
	})
	all.Go(func() { events.Run(ctx) })
	t.Cleanup(func() { cancel(); all.Wait() })
	return s, requests
}

func create(t *testing.T, name string) *corev1.Service {
	t.Helper()
	service, err := control.Client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return service
}

func createSlice(t *testing.T, name, service string) *discoveryv1.EndpointSlice {
	t.Helper()
	port, portName := int32(8080), ""
	slice, err := control.Client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.1.0.1"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return slice
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := control.Client.CoreV1().Services("default").Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func named(name string) model.Name { return model.Name{Namespace: "default", Name: name} }

func TestRealAPIServer(t *testing.T) {
	service := create(t, "real-a")
	createSlice(t, "real-a-1", "real-a")
	s, requests := follow(t, "real-node")
	s.await(t, "services and slices", func() bool {
		return s.synced[watch.Services] && s.synced[watch.Slices] && s.synced[watch.ServiceCIDRs]
	})
	if got := s.services[named("real-a")]; got == nil || got.ClusterIPs[0].String() != service.Spec.ClusterIP {
		t.Errorf("services are %v", s.services)
	}
	if got := s.slices[named("real-a-1")]; got == nil || got.Service != named("real-a") {
		t.Errorf("slices are %v", s.slices)
	}
	if want := netip.MustParsePrefix(cluster.ServiceCIDR); !slices.Contains(s.cidrs, want) {
		t.Errorf("service CIDRs are %v, want %s", s.cidrs, want)
	}
	if s.synced[watch.Nodes] {
		t.Error("a node that does not exist is synced")
	}
	addNode(t, "real-node")
	s.await(t, "node", func() bool { return s.synced[watch.Nodes] && s.node.Zone == "z" && len(s.node.Addresses) == 1 })

	create(t, "real-b")
	remove(t, "real-a")
	s.await(t, "changes", func() bool { return s.services[named("real-a")] == nil && s.services[named("real-b")] != nil })
	requests.mu.Lock()
	defer requests.mu.Unlock()
	for _, url := range requests.urls {
		if strings.HasPrefix(url, "GET ") && !strings.Contains(url, "sendInitialEvents=true") { // events of other tests are posted
			t.Errorf("%s: objects were not streamed", url)
		}
	}
}

func addNode(t *testing.T, name string) {
	t.Helper()
	nodes := control.Client.CoreV1().Nodes()
	node, err := nodes.Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: "z"}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.1.0.0/24"}, PodCIDR: "10.1.0.0/24"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	if _, err := nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestRealEvents: kube-proxy's rights suffice to tell a Service's author what is wrong.
func TestRealEvents(t *testing.T) {
	follow(t, "events")
	services := control.Client.CoreV1().Services("default")
	service, err := services.Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "real-e"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "127.0.0.1"}}
	if _, err := services.UpdateStatus(t.Context(), service, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	var notes []string
	err = criclient.Wait(t.Context(), patience, func() bool {
		events, err := control.Client.EventsV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return false
		}
		notes = nil
		for _, e := range events.Items {
			if e.Regarding.Name == "real-e" && e.ReportingController == "orlop-proxy" && strings.Contains(e.Note, "status.loadBalancer.ingress") {
				return true
			}
			notes = append(notes, fmt.Sprintf("%s %s: %s", e.ReportingController, e.Regarding.Name, e.Note))
		}
		return false
	})
	if err != nil {
		t.Errorf("no event: %v; others are %q", err, notes)
	}
}

// TestRealRestart: what changed while the API server was away from us is told, deletions too.
func TestRealRestart(t *testing.T) {
	create(t, "real-r")
	s, _ := follow(t, "restart")
	s.await(t, "services", func() bool { return s.services[named("real-r")] != nil })
	if err := control.Kill("kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	if err := control.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	remove(t, "real-r")
	create(t, "real-s")
	s.await(t, "changes", func() bool { return s.services[named("real-r")] == nil && s.services[named("real-s")] != nil })
}
