// Package kubetest is an API server for tests: it keeps objects in memory and answers as a real one does, without
// validation, defaults or rights.
package kubetest

import (
	"cmp"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/orlop/orlop/internal/kube"
)

// Object is one of the API.
type Object interface {
	runtime.Object
	metav1.Object
}

// Server has Services, EndpointSlices, Nodes, ServiceCIDRs, Events, Pods, ConfigMaps, Secrets, Leases,
// CertificateSigningRequests and what volumes are described by. It lists them, streams them (KEP-3157), watches them from a version, with label and field
// selectors; gets, creates, updates, patches and deletes them; as JSON or protobuf.
type Server struct {
	*httptest.Server
	codecs serializer.CodecFactory

	mu      sync.Mutex
	changed *sync.Cond
	version int64
	objects map[string]map[types.NamespacedName]Object // by plural
	log     []change                                   // oldest first
	lost    int64                                      // a watch from a version before this one is refused
	watches map[*bool]bool                             // those that run; true in it ends one
	asked   []string
	faults  Faults
}

// Faults are what a Server does that a good one does not.
type Faults struct {
	Refuse    map[string]int // requests for these plurals are answered with a status code
	NoLists   bool           // lists are refused: a client should stream
	NoStreams bool           // streams are refused, as by older servers
	// OnCreate may change an object that is created before it is kept, as controllers do soon after; may be nil.
	OnCreate func(o Object)
}

// change is what happened to an object: before is nil for one that is new, now for one that is gone.
type change struct {
	version     int64
	plural      string
	before, now Object
}

// New starts a server for the time of a test.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		codecs: serializer.NewCodecFactory(scheme()), version: 100,
		objects: map[string]map[types.NamespacedName]Object{}, watches: map[*bool]bool{},
	}
	s.changed = sync.NewCond(&s.mu)
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() { s.dropWatches(); s.Close() })
	return s
}

// Client is one that transfers objects as contentType, or as protobuf if that is empty.
func (s *Server) Client(t testing.TB, contentType string) *kube.Client {
	t.Helper()
	c, err := kube.New(&rest.Config{Host: s.URL, ContentConfig: rest.ContentConfig{ContentType: contentType}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// kind is a type of objects that a server has.
type kind struct {
	one  Object
	list runtime.Object
}

var kinds = map[string]kind{
	"services":                   {&corev1.Service{}, &corev1.ServiceList{}},
	"endpointslices":             {&discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{}},
	"nodes":                      {&corev1.Node{}, &corev1.NodeList{}},
	"servicecidrs":               {&networkingv1.ServiceCIDR{}, &networkingv1.ServiceCIDRList{}},
	"events":                     {&eventsv1.Event{}, &eventsv1.EventList{}},
	"pods":                       {&corev1.Pod{}, &corev1.PodList{}},
	"configmaps":                 {&corev1.ConfigMap{}, &corev1.ConfigMapList{}},
	"secrets":                    {&corev1.Secret{}, &corev1.SecretList{}},
	"persistentvolumes":          {&corev1.PersistentVolume{}, &corev1.PersistentVolumeList{}},
	"persistentvolumeclaims":     {&corev1.PersistentVolumeClaim{}, &corev1.PersistentVolumeClaimList{}},
	"csidrivers":                 {&storagev1.CSIDriver{}, &storagev1.CSIDriverList{}},
	"csinodes":                   {&storagev1.CSINode{}, &storagev1.CSINodeList{}},
	"volumeattachments":          {&storagev1.VolumeAttachment{}, &storagev1.VolumeAttachmentList{}},
	"leases":                     {&coordinationv1.Lease{}, &coordinationv1.LeaseList{}},
	"certificatesigningrequests": {&certificatesv1.CertificateSigningRequest{}, &certificatesv1.CertificateSigningRequestList{}},
}

// scheme is made when it is needed: the memory of some programs that link this is measured.
var scheme = sync.OnceValue(func() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, eventsv1.AddToScheme,
		coordinationv1.AddToScheme, storagev1.AddToScheme, certificatesv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return scheme
})

func pluralOf(o Object) string {
	for plural, k := range kinds {
		if fmt.Sprintf("%T", k.one) == fmt.Sprintf("%T", o) {
			return plural
		}
	}
	panic(fmt.Sprintf("kubetest has no %T", o))
}

func nameOf(o Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// Set adds or replaces objects.
func (s *Server) Set(all ...Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range all {
		s.setLocked(o)
	}
}

func (s *Server) setLocked(o Object) Object {
	s.version++
	o = o.DeepCopyObject().(Object)
	o.SetResourceVersion(strconv.FormatInt(s.version, 10))
	plural := pluralOf(o)
	if s.objects[plural] == nil {
		s.objects[plural] = map[types.NamespacedName]Object{}
	}
	before := s.objects[plural][nameOf(o)]
	s.objects[plural][nameOf(o)] = o
	s.log = append(s.log, change{version: s.version, plural: plural, before: before, now: o})
	s.changed.Broadcast()
	return o
}

// Delete removes objects.
func (s *Server) Delete(all ...Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range all {
		s.deleteLocked(pluralOf(o), nameOf(o))
	}
}

func (s *Server) deleteLocked(plural string, name types.NamespacedName) {
	s.version++
	before := s.objects[plural][name]
	delete(s.objects[plural], name)
	s.log = append(s.log, change{version: s.version, plural: plural, before: before})
	s.changed.Broadcast()
}

// Objects are copies of all that a resource has, in the order of their names.
func (s *Server) Objects(plural string) []Object {
	all, _ := s.choose(plural, func(Object) bool { return true })
	return all
}

func (s *Server) choose(plural string, is func(Object) bool) (all []Object, version int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.objects[plural] {
		if is(o) {
			all = append(all, o.DeepCopyObject().(Object))
		}
	}
	slices.SortFunc(all, func(a, b Object) int { return cmp.Compare(nameOf(a).String(), nameOf(b).String()) })
	return all, s.version
}

// Break has the server do what Faults say from now on.
func (s *Server) Break(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// Forget makes all versions so far too old to be watched from, and ends all watches.
func (s *Server) Forget() {
	s.mu.Lock()
	s.lost, s.log = s.version, nil
	s.mu.Unlock()
	s.dropWatches()
}

func (s *Server) dropWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watches {
		*w = true
	}
	s.changed.Broadcast()
}

// Requests are those that were made for a resource, as "METHOD URI ACCEPT".
func (s *Server) Requests(plural string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.asked), func(r string) bool { return !strings.Contains(r, "/"+plural) })
}

// target is what a path leads to.
type target struct {
	plural      string
	name        types.NamespacedName // Name is empty for all
	subresource string
}

// parse reads /api/v1/... and /apis/GROUP/VERSION/..., with namespaces/NAME or without.
func parse(path string) target {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if parts[0] == "api" {
		parts = parts[2:]
	} else {
		parts = parts[min(3, len(parts)):]
	}
	var t target
	if len(parts) > 2 && parts[0] == "namespaces" {
		t.name.Namespace, parts = parts[1], parts[2:]
	}
	for i, field := range []*string{&t.plural, &t.name.Name, &t.subresource} {
		if i < len(parts) {
			*field = parts[i]
		}
	}
	return t
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := parse(r.URL.Path)
	s.mu.Lock()
	s.asked = append(s.asked, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Accept"))
	faults := s.faults
	s.mu.Unlock()
	stream := r.URL.Query().Get("sendInitialEvents") == "true"
	switch watched := r.URL.Query().Get("watch") != ""; {
	case faults.Refuse[t.plural] != 0:
		http.Error(w, "refused", faults.Refuse[t.plural])
	case r.Method != http.MethodGet || t.name.Name != "":
		s.single(w, r, t)
	case !watched && faults.NoLists:
		http.Error(w, "lists are refused here", http.StatusBadRequest)
	case !watched:
		s.list(w, r, t)
	case stream && faults.NoStreams:
		http.Error(w, "sendInitialEvents is forbidden", http.StatusUnprocessableEntity)
	default:
		s.watch(w, r, t, stream)
	}
}
