package watch

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"

	"github.com/orlop/orlop/internal/kube"
)

// object is one of the API.
type object interface {
	runtime.Object
	metav1.Object
}

// apiServer answers as one does: lists, watches from a version, streams of what is there (KEP-3157), as JSON or protobuf,
// with label and field selectors.
type apiServer struct {
	*httptest.Server
	codecs serializer.CodecFactory

	mu      sync.Mutex
	version int64
	objects map[string]map[string]object // by plural, then by namespace/name
	log     []change                     // every one, oldest first
	lost    int64                        // versions up to this one are forgotten: a watch from there is refused
	refuse  map[string]int               // status by plural
	noLists bool                         // a client that lists fails, as it should stream
	noWatch bool                         // streams are refused, as by older servers
	changed *sync.Cond
	watches map[*bool]bool // those that run; true to end one
	asked   []string       // paths and queries
}

type change struct {
	version int64
	plural  string
	kind    string
	object  object
	before  object // for what a selector chose before
}

// scheme is made when it is needed: a benchmark's child does not need it, and its memory is measured.
var scheme = sync.OnceValue(func() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme, eventsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return scheme
})

func newAPIServer(t testing.TB) *apiServer {
	t.Helper()
	s := &apiServer{codecs: serializer.NewCodecFactory(scheme()), objects: map[string]map[string]object{}, refuse: map[string]int{}, version: 100, watches: map[*bool]bool{}}
	s.changed = sync.NewCond(&s.mu)
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() { s.dropWatches(); s.Close() })
	return s
}

func (s *apiServer) client(t testing.TB, contentType string) *kube.Client {
	t.Helper()
	c, err := kube.New(&rest.Config{Host: s.URL, ContentConfig: rest.ContentConfig{ContentType: contentType}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func pluralOf(o object) string {
	switch o.(type) {
	case *corev1.Service:
		return "services"
	case *discoveryv1.EndpointSlice:
		return "endpointslices"
	case *corev1.Node:
		return "nodes"
	case *networkingv1.ServiceCIDR:
		return "servicecidrs"
	case *eventsv1.Event:
		return "events"
	}
	panic(fmt.Sprintf("%T", o))
}

func keyOf(o object) string { return o.GetNamespace() + "/" + o.GetName() }

// set adds or changes objects.
func (s *apiServer) set(all ...object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range all {
		s.version++
		o = o.DeepCopyObject().(object)
		o.SetResourceVersion(strconv.FormatInt(s.version, 10))
		plural := pluralOf(o)
		if s.objects[plural] == nil {
			s.objects[plural] = map[string]object{}
		}
		kind, before := "ADDED", s.objects[plural][keyOf(o)]
		if before != nil {
			kind = "MODIFIED"
		}
		s.objects[plural][keyOf(o)] = o
		s.log = append(s.log, change{version: s.version, plural: plural, kind: kind, object: o, before: before})
	}
	s.changed.Broadcast()
}

func (s *apiServer) delete(all ...object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range all {
		s.version++
		gone := s.objects[pluralOf(o)][keyOf(o)].DeepCopyObject().(object)
		delete(s.objects[pluralOf(o)], keyOf(o))
		gone.SetResourceVersion(strconv.FormatInt(s.version, 10))
		s.log = append(s.log, change{version: s.version, plural: pluralOf(o), kind: "DELETED", object: gone, before: gone})
	}
	s.changed.Broadcast()
}

// forget makes all versions so far too old to be watched from, and ends all watches.
func (s *apiServer) forget() {
	s.mu.Lock()
	s.lost, s.log = s.version, nil
	s.mu.Unlock()
	s.dropWatches()
}

func (s *apiServer) dropWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watches {
		*w = true
	}
	s.changed.Broadcast()
}

// requests are those that were made for a resource.
func (s *apiServer) requests(plural string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.asked), func(r string) bool { return !strings.Contains(r, "/"+plural) })
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	plural := parts[len(parts)-1]
	q := r.URL.Query()
	s.mu.Lock()
	s.asked = append(s.asked, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Accept"))
	refuse := s.refuse[plural]
	noLists, noWatch, lost := s.noLists, s.noWatch, s.lost
	s.mu.Unlock()
	from, _ := strconv.ParseInt(q.Get("resourceVersion"), 10, 64)
	stream := q.Get("sendInitialEvents") == "true"
	switch {
	case refuse != 0:
		http.Error(w, "refused", refuse)
	case r.Method == http.MethodPost:
		s.create(w, r, plural)
	case q.Get("watch") == "" && noLists:
		http.Error(w, "lists are refused here", http.StatusBadRequest)
	case q.Get("watch") == "":
		s.list(w, r, plural)
	case stream && noWatch:
		http.Error(w, "sendInitialEvents is forbidden", http.StatusUnprocessableEntity)
	case from != 0 && from < lost:
		http.Error(w, "too old", http.StatusGone)
	default:
		s.watch(w, r, plural, from, stream)
	}
}

func (s *apiServer) create(w http.ResponseWriter, r *http.Request, plural string) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	o, _, err := s.codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.set(o.(object))
	text, media := s.encode(r, o)
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(text)
}

// chooser is what a request's selectors choose.
func chooser(r *http.Request) func(object) bool {
	byLabel, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		panic(err)
	}
	byField, err := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	if err != nil {
		panic(err)
	}
	return func(o object) bool {
		set := fields.Set{"metadata.name": o.GetName()}
		if service, ok := o.(*corev1.Service); ok {
			set["spec.clusterIP"] = service.Spec.ClusterIP
		}
		return o != nil && byLabel.Matches(labels.Set(o.GetLabels())) && byField.Matches(set)
	}
}

func (s *apiServer) encode(r *http.Request, o runtime.Object) (text []byte, mediaType string) {
	mediaType = runtime.ContentTypeJSON
	if strings.HasPrefix(r.Header.Get("Accept"), runtime.ContentTypeProtobuf) {
		mediaType = runtime.ContentTypeProtobuf
	}
	kinds, _, err := scheme().ObjectKinds(o)
	if err != nil {
		panic(err)
	}
	info, _ := runtime.SerializerInfoForMediaType(s.codecs.SupportedMediaTypes(), mediaType)
	text, err = runtime.Encode(s.codecs.EncoderForVersion(info.Serializer, kinds[0].GroupVersion()), o)
	if err != nil {
		panic(err)
	}
	return text, mediaType
}

func (s *apiServer) chosen(r *http.Request, plural string) ([]object, int64) {
	choose := chooser(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []object
	for _, o := range s.objects[plural] {
		if choose(o) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b object) int { return cmp.Compare(keyOf(a), keyOf(b)) })
	return out, s.version
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request, plural string) {
	lists := map[string]runtime.Object{
		"services": &corev1.ServiceList{}, "endpointslices": &discoveryv1.EndpointSliceList{}, "nodes": &corev1.NodeList{}, "servicecidrs": &networkingv1.ServiceCIDRList{},
	}
	all, version := s.chosen(r, plural)
	list := lists[plural]
	items := make([]runtime.Object, len(all))
	for i := range all {
		items[i] = all[i]
	}
	if err := meta.SetList(list, items); err != nil {
		panic(err)
	}
	list.(metav1.ListInterface).SetResourceVersion(strconv.FormatInt(version, 10))
	text, media := s.encode(r, list)
	w.Header().Set("Content-Type", media)
	_, _ = w.Write(text)
}

// watch sends what is there, if that is asked for, and a bookmark, and then what happens.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, plural string, from int64, stream bool) {
	var ended bool
	s.mu.Lock()
	s.watches[&ended] = true
	s.mu.Unlock()
	send := s.sender(w, r)
	if stream || from == 0 {
		all, version := s.chosen(r, plural)
		for _, o := range all {
			send("ADDED", o)
		}
		from = version
	}
	if stream {
		mark := s.empty(plural)
		mark.SetResourceVersion(strconv.FormatInt(from, 10))
		mark.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		send("BOOKMARK", mark)
	}
	w.(http.Flusher).Flush()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // who leaves must wake the loop
		select {
		case <-r.Context().Done():
			s.mu.Lock()
			ended = true
			s.mu.Unlock()
			s.changed.Broadcast()
		case <-stop:
		}
	}()
	for {
		news, over := s.news(plural, from, &ended)
		if over {
			return
		}
		for _, c := range news {
			from = c.version
			s.tell(send, chooser(r), c)
		}
		w.(http.Flusher).Flush()
	}
}

// tell says what a change means for what a selector chooses.
func (s *apiServer) tell(send func(string, object), choose func(object) bool, c change) {
	is, was := c.kind != "DELETED" && choose(c.object), c.before != nil && choose(c.before)
	switch {
	case is && was:
		send("MODIFIED", c.object)
	case is:
		send("ADDED", c.object)
	case was:
		gone := c.before.DeepCopyObject().(object)
		gone.SetResourceVersion(strconv.FormatInt(c.version, 10))
		send("DELETED", gone)
	}
}

func (s *apiServer) empty(plural string) object {
	return map[string]object{
		"services": &corev1.Service{}, "endpointslices": &discoveryv1.EndpointSlice{}, "nodes": &corev1.Node{}, "servicecidrs": &networkingv1.ServiceCIDR{},
	}[plural].DeepCopyObject().(object)
}

// news waits for changes after a version.
func (s *apiServer) news(plural string, from int64, ended *bool) (news []change, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if *ended {
			delete(s.watches, ended)
			return nil, true
		}
		at, _ := slices.BinarySearchFunc(s.log, from+1, func(c change, v int64) int { return cmp.Compare(c.version, v) })
		for _, c := range s.log[at:] {
			if c.plural == plural {
				news = append(news, c)
			}
		}
		if len(news) > 0 {
			return news, false
		}
		s.changed.Wait()
	}
}

func (s *apiServer) sender(w http.ResponseWriter, r *http.Request) func(kind string, o object) {
	_, media := s.encode(r, &corev1.Node{})
	if media == runtime.ContentTypeJSON {
		w.Header().Set("Content-Type", media)
		return func(kind string, o object) {
			text, _ := s.encode(r, o)
			_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": json.RawMessage(text)})
		}
	}
	w.Header().Set("Content-Type", media+";stream=watch")
	frames := protobuf.LengthDelimitedFramer.NewFrameWriter(w)
	return func(kind string, o object) {
		text, _ := s.encode(r, o)
		event := metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: text}}
		frame, err := event.Marshal()
		if err != nil {
			panic(err)
		}
		_, _ = frames.Write(frame)
	}
}
