package watch

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/proxy/model"
)

func service(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "test"}}},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

func slice(name, service string, addrs ...string) *discoveryv1.EndpointSlice {
	port, portName := int32(8080), "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	for _, addr := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}})
	}
	return s
}

func thisNode() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "here", Labels: map[string]string{corev1.LabelTopologyZone: "z"}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.1.0.0/24", "fd01::/64"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeExternalIP, Address: "203.0.113.1"}, {Type: corev1.NodeHostName, Address: "here"},
			{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::1"},
		}},
	}
}

func cidrObject(name string, cidrs ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
}

func name(s string) model.Name { return model.Name{Namespace: "ns", Name: s} }

// follow follows a server as protobuf.
func follow(t testing.TB, s *kubetest.Server) (*recorder, *logText) {
	t.Helper()
	log, text := logOf(t)
	return run(t, &API{Client: s.Client(t, ""), Node: "here", WantServiceCIDRs: true, Log: log}), text
}

func TestAPITellsOfWhatIsThereAndOfChanges(t *testing.T) {
	for _, tt := range []struct {
		name, contentType string
		noLists, noWatch  bool
	}{
		{"protobuf stream", "", true, false},
		{"JSON stream", runtime.ContentTypeJSON, true, false},
		{"protobuf list", "", false, true},
		{"JSON list", runtime.ContentTypeJSON, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := kubetest.New(t)
			s.Break(kubetest.Faults{NoLists: tt.noLists, NoStreams: tt.noWatch})
			s.Set(service("a", "10.96.0.1"), slice("a-1", "a", "10.1.0.1"), slice("of-nobody", ""), thisNode(), cidrObject("k", "10.96.0.0/16"))
			other := thisNode()
			other.Name = "there"
			s.Set(other)
			log, _ := logOf(t)
			r := run(t, &API{Client: s.Client(t, tt.contentType), Node: "here", WantServiceCIDRs: true, Log: log})
			r.awaitSynced(t)
			wantNode := Node{
				Node: model.Node{Name: "here", Zone: "z"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd01::/64")},
			}
			if !r.node.Equal(wantNode) {
				t.Errorf("node is %+v, want %+v", r.node, wantNode)
			}
			if want := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}; !slices.Equal(r.cidrs, want) {
				t.Errorf("service CIDRs are %v, want %v", r.cidrs, want)
			}
			if got := r.services[name("a")]; len(r.services) != 1 || got == nil || got.Ports[0].Port != 80 {
				t.Errorf("services are %v", r.services)
			}
			if got := r.slices[[2]model.Name{name("a"), name("a-1")}]; len(r.slices) != 1 || got == nil || len(got.Endpoints) != 1 {
				t.Errorf("slices are %v", r.slices)
			}

			s.Set(service("b", "10.96.0.2"), slice("a-1", "a", "10.1.0.1", "10.1.0.2"))
			s.Delete(service("a", ""))
			r.await(t, "changes", func() bool {
				return r.services[name("a")] == nil && r.services[name("b")] != nil && len(r.slices[[2]model.Name{name("a"), name("a-1")}].Endpoints) == 2
			})
			s.Delete(slice("a-1", "a"))
			r.await(t, "slice gone", func() bool { return len(r.slices) == 0 })
		})
	}
}

// TestAPITellsOnce: what is of no use here is not told, and what did not change is not either.
func TestAPITellsOnce(t *testing.T) {
	s := kubetest.New(t)
	s.Set(service("a", "10.96.0.1"), slice("a-1", "a", "10.1.0.1"), thisNode())
	r, _ := follow(t, s)
	r.awaitSynced(t)
	r.take()
	relabelled := service("a", "10.96.0.1")
	relabelled.Labels = map[string]string{"x": "y"}
	node := thisNode()
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
	s.Set(relabelled, node, slice("of-nobody", ""), service("z", "10.96.0.9"))
	s.Set(slice("a-1", "a", "10.1.0.2"))
	r.await(t, "the last changes", func() bool {
		return r.services[name("z")] != nil && slices.Contains(r.calls, "set slice ns/a-1 of ns/a")
	})
	got := r.take()
	slices.Sort(got) // services and slices come by different streams
	if diff := cmp.Diff([]string{"set service ns/z", "set slice ns/a-1 of ns/a"}, got); diff != "" {
		t.Error(diff)
	}
	for kind, n := range r.synced {
		if n != 1 {
			t.Errorf("synced %s: told %d times", Kind(kind), n)
		}
	}
}

// TestAPISelectsAsKubeProxy: other proxies' Services and headless ones are not even transferred.
func TestAPISelectsAsKubeProxy(t *testing.T) {
	s := kubetest.New(t)
	foreign := service("foreign", "10.96.0.3")
	foreign.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	headlessSlice := slice("h-1", "h", "10.1.0.1")
	headlessSlice.Labels[corev1.IsHeadlessService] = ""
	becomes := service("becomes", "10.96.0.4")
	s.Set(foreign, service("h", corev1.ClusterIPNone), headlessSlice, becomes, service("a", "10.96.0.1"), thisNode())
	r, _ := follow(t, s)
	r.awaitSynced(t)
	if len(r.services) != 2 || len(r.slices) != 0 {
		t.Errorf("services are %v, slices %v; want a and becomes alone", r.services, r.slices)
	}
	becomes.Labels = foreign.Labels // another proxy takes it over
	s.Set(becomes)
	r.await(t, "service handed over", func() bool { return r.services[name("becomes")] == nil })
	for plural, want := range map[string]string{
		"services":       "fieldSelector=spec.clusterIP%21%3DNone&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name",
		"endpointslices": "labelSelector=%21service.kubernetes.io%2Fheadless",
		"nodes":          "fieldSelector=metadata.name%3Dhere",
	} {
		for _, request := range s.Requests(plural) {
			if !strings.Contains(request, want) || !strings.Contains(request, runtime.ContentTypeProtobuf) {
				t.Errorf("%s: request %s without %s or protobuf", plural, request, want)
			}
		}
	}
}

// TestAPIAfterALostWatch: what vanished while nobody watched is told, before what may have its address now.
func TestAPIAfterALostWatch(t *testing.T) {
	s := kubetest.New(t)
	s.Set(service("a", "10.96.0.1"), service("b", "10.96.0.2"), service("c", "10.96.0.3"), slice("b-1", "b", "10.1.0.1"), thisNode(), cidrObject("k", "10.96.0.0/16"), cidrObject("l", "10.97.0.0/16"))
	r, _ := follow(t, s)
	r.awaitSynced(t)
	r.take()
	s.Break(kubetest.Faults{Refuse: map[string]int{"services": 503, "endpointslices": 503, "nodes": 503, "servicecidrs": 503}})
	s.Forget()
	s.Delete(service("b", ""), slice("b-1", "b"), cidrObject("l"))
	s.Set(service("a", "10.96.0.2"), service("d", "10.96.0.4"))
	s.Forget()
	s.Break(kubetest.Faults{})
	r.await(t, "the new state", func() bool {
		return r.services[name("d")] != nil && len(r.services) == 3 && len(r.slices) == 0 && len(r.cidrs) == 1
	})
	got := slices.DeleteFunc(r.take(), func(c string) bool { return !strings.Contains(c, "service ns/") })
	if diff := cmp.Diff([]string{"delete service ns/b", "set service ns/a", "set service ns/d"}, got); diff != "" {
		t.Errorf("c did not change, and b went before a took its address:\n%s", diff)
	}
}

func TestAPIWithoutServiceCIDRs(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusForbidden} {
		s := kubetest.New(t)
		s.Break(kubetest.Faults{Refuse: map[string]int{"servicecidrs": status}})
		s.Set(thisNode())
		r, text := follow(t, s)
		r.awaitSynced(t)
		if !strings.Contains(text.String(), "going on without ServiceCIDRs") {
			t.Errorf("status %d: log is %s", status, text)
		}
	}
}

func TestAPISliceThatMovesToAnotherService(t *testing.T) {
	s := kubetest.New(t)
	s.Set(slice("s", "a", "10.1.0.1"), thisNode())
	r, _ := follow(t, s)
	r.awaitSynced(t)
	r.take()
	s.Set(slice("s", "b", "10.1.0.1"))
	r.await(t, "moved", func() bool { return r.slices[[2]model.Name{name("b"), name("s")}] != nil })
	if diff := cmp.Diff([]string{"delete slice ns/s of ns/a", "set slice ns/s of ns/b"}, r.take()); diff != "" {
		t.Error(diff)
	}
}

// TestAPIComplainsOncePerVersion in the log, and to the author of a Service.
func TestAPIComplainsOncePerVersion(t *testing.T) {
	s := kubetest.New(t)
	bad := service("bad", "10.96.0.1")
	bad.Spec.ExternalIPs = []string{"127.0.0.1", "198.51.100.1"}
	s.Set(bad, thisNode())
	log, text := logOf(t)
	client := s.Client(t, "")
	events, err := kube.NewRecorder(client, "orlop-proxy", "here", log)
	if err != nil {
		t.Fatal(err)
	}
	go events.Run(t.Context())
	r := run(t, &API{Client: client, Node: "here", Events: events, Log: log})
	r.awaitSynced(t)
	if got := r.services[name("bad")].ExternalIPs; len(got) != 1 || got[0].String() != "198.51.100.1" {
		t.Errorf("external IPs are %v; the good one must be served", got)
	}
	s.Forget() // all is told again
	s.Set(service("z", "10.96.0.2"))
	r.await(t, "another one", func() bool { return r.services[name("z")] != nil })
	if n := strings.Count(text.String(), "spec.externalIPs"); n != 1 {
		t.Errorf("complained %d times:\n%s", n, text)
	}
	s.Set(bad) // a new version
	s.Set(service("y", "10.96.0.3"))
	r.await(t, "yet another one", func() bool { return r.services[name("y")] != nil })
	if n := strings.Count(text.String(), "spec.externalIPs"); n != 2 {
		t.Errorf("complained %d times of two versions:\n%s", n, text)
	}
	r.await(t, "events", func() bool { return len(s.Objects("events")) == 2 })
	for _, o := range s.Objects("events") {
		e := o.(*eventsv1.Event)
		if e.Regarding.Name != "bad" || e.Type != "Warning" || !strings.Contains(e.Note, "spec.externalIPs") || e.ReportingController != "orlop-proxy" {
			t.Errorf("event is %+v", e)
		}
	}
}

func TestAPINodeThatComesAndGoes(t *testing.T) {
	s := kubetest.New(t)
	log, text := logOf(t)
	r := run(t, &API{Client: s.Client(t, ""), Node: "here", NeedPodCIDRs: true, Log: log})
	r.await(t, "the rest", func() bool { return r.synced[Services] == 1 && r.synced[Slices] == 1 && r.synced[ServiceCIDRs] == 1 })
	early := thisNode()
	early.Spec.PodCIDRs = nil
	s.Set(early)
	r.await(t, "an early node", func() bool { return len(r.node.Addresses) == 2 })
	if r.synced[Nodes] != 0 {
		t.Error("node is synced without podCIDRs, which were asked for")
	}
	s.Set(thisNode())
	r.await(t, "synced", func() bool { return r.synced[Nodes] == 1 })
	moved := thisNode()
	moved.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.9"}}
	s.Set(moved)
	r.await(t, "another address", func() bool { return r.node.Addresses[0].String() == "192.0.2.9" })
	if !strings.Contains(text.String(), "addresses changed") {
		t.Errorf("log is %s", text)
	}
	s.Delete(moved)
	r.await(t, "leaving", func() bool { return r.node.Leaving })
	if r.node.Addresses[0].String() != "192.0.2.9" {
		t.Errorf("node is %+v; what was known must stay", r.node)
	}
	s.Set(thisNode())
	r.await(t, "back", func() bool { return !r.node.Leaving })
}

func TestAPITriggers(t *testing.T) {
	s := kubetest.New(t)
	old := slice("a-1", "a", "10.1.0.1")
	old.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: "2020-01-01T00:00:00Z"}
	s.Set(old, thisNode())
	r, _ := follow(t, s)
	r.awaitSynced(t)
	at := time.Now().Add(time.Minute).UTC().Format(time.RFC3339Nano)
	next := slice("a-1", "a", "10.1.0.2")
	next.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: at}
	s.Set(next)
	r.await(t, "the change", func() bool { return slices.Contains(r.calls, "triggered "+at) })
	got := slices.DeleteFunc(r.take(), func(c string) bool { return !strings.HasPrefix(c, "triggered") })
	if diff := cmp.Diff([]string{"triggered " + at}, got); diff != "" {
		t.Error(diff)
	}
}

func TestNodeIPs(t *testing.T) {
	for _, tt := range []struct{ known, bind, want string }{
		{"", "", "127.0.0.1 ::1"},
		{"", "0.0.0.0", "127.0.0.1 ::1"},
		{"", "2001:db8::5", "2001:db8::5 127.0.0.1"},
		{"192.0.2.1", "", "192.0.2.1 ::1"},
		{"2001:db8::1", "", "2001:db8::1 127.0.0.1"},
		{"192.0.2.1 2001:db8::1", "::", "192.0.2.1 2001:db8::1"},
		{"192.0.2.1 2001:db8::1", "192.0.2.7", "192.0.2.7 2001:db8::1"},
		{"192.0.2.1 2001:db8::1", "2001:db8::7", "2001:db8::7 192.0.2.1"},
	} {
		var node Node
		for s := range strings.FieldsSeq(tt.known) {
			node.Addresses = append(node.Addresses, netip.MustParseAddr(s))
		}
		bind, _ := netip.ParseAddr(tt.bind)
		if got := strings.Trim(fmt.Sprint(node.IPs(bind)), "[]"); got != tt.want {
			t.Errorf("known %q, bind %q: %s, want %s", tt.known, tt.bind, got, tt.want)
		}
	}
}
