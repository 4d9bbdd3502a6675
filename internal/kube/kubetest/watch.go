package kubetest

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/watch"
)

// chooser is what a request's namespace and selectors choose.
func chooser(r *http.Request, t target) func(Object) bool {
	byLabel, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		panic(err)
	}
	byField, err := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	if err != nil {
		panic(err)
	}
	return func(o Object) bool {
		if o == nil || t.name.Namespace != "" && t.name.Namespace != o.GetNamespace() {
			return false
		}
		set := fields.Set{"metadata.name": o.GetName()}
		switch o := o.(type) {
		case *corev1.Service:
			set["spec.clusterIP"] = o.Spec.ClusterIP
		case *corev1.Pod:
			set["spec.nodeName"] = o.Spec.NodeName
		}
		return byLabel.Matches(labels.Set(o.GetLabels())) && byField.Matches(set)
	}
}

// encode writes an object as the request accepts it. Encoders change an object for a while, which others may read.
func (s *Server) encode(r *http.Request, o runtime.Object) (text []byte, mediaType string) {
	o, mediaType = o.DeepCopyObject(), runtime.ContentTypeJSON
	if strings.HasPrefix(r.Header.Get("Accept"), runtime.ContentTypeProtobuf) {
		mediaType = runtime.ContentTypeProtobuf
	}
	known, _, err := scheme().ObjectKinds(o)
	if err != nil {
		panic(err)
	}
	info, _ := runtime.SerializerInfoForMediaType(s.codecs.SupportedMediaTypes(), mediaType)
	text, err = runtime.Encode(s.codecs.EncoderForVersion(info.Serializer, known[0].GroupVersion()), o)
	if err != nil {
		panic(err)
	}
	return text, mediaType
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, t target) {
	all, version := s.choose(t.plural, chooser(r, t))
	list := kinds[t.plural].list.DeepCopyObject()
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

// send writes one event of a watch.
type send func(kind watch.EventType, o Object)

// watch sends what is there, if that is asked for, with a bookmark after it, and then what happens.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, t target, stream bool) {
	from, _ := strconv.ParseInt(r.URL.Query().Get("resourceVersion"), 10, 64)
	var ended bool
	s.mu.Lock()
	tooOld := from != 0 && from < s.lost
	s.watches[&ended] = true
	s.mu.Unlock()
	defer s.end(&ended)
	if tooOld {
		http.Error(w, "too old", http.StatusGone)
		return
	}
	send, choose := s.sender(w, r), chooser(r, t)
	if stream || from == 0 {
		var all []Object
		all, from = s.choose(t.plural, choose)
		for _, o := range all {
			send(watch.Added, o)
		}
	}
	if stream {
		mark := kinds[t.plural].one.DeepCopyObject().(Object)
		mark.SetResourceVersion(strconv.FormatInt(from, 10))
		mark.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		send(watch.Bookmark, mark)
	}
	w.(http.Flusher).Flush()
	defer context.AfterFunc(r.Context(), func() { s.end(&ended) })() // who leaves must wake the loop
	for {
		news := s.news(t.plural, from, &ended)
		if news == nil {
			return
		}
		for _, c := range news {
			from = c.version
			tell(send, choose, c)
		}
		w.(http.Flusher).Flush()
	}
}

func (s *Server) end(watch *bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*watch = true
	delete(s.watches, watch)
	s.changed.Broadcast()
}

// tell says what a change means for what a selector chooses.
func tell(send send, choose func(Object) bool, c change) {
	switch is, was := choose(c.now), choose(c.before); {
	case is && was:
		send(watch.Modified, c.now)
	case is:
		send(watch.Added, c.now)
	case was:
		gone := c.before.DeepCopyObject().(Object)
		gone.SetResourceVersion(strconv.FormatInt(c.version, 10))
		send(watch.Deleted, gone)
	}
}

// news waits for changes after a version; nil if the watch is to end.
func (s *Server) news(plural string, from int64, ended *bool) (news []change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; ; s.changed.Wait() {
		if *ended {
			return nil
		}
		at, _ := slices.BinarySearchFunc(s.log, from+1, func(c change, v int64) int { return cmp.Compare(c.version, v) })
		for _, c := range s.log[at:] {
			if c.plural == plural {
				news = append(news, c)
			}
		}
		if len(news) > 0 {
			return news
		}
	}
}

// sender writes events as lines of JSON, or as frames of protobuf.
func (s *Server) sender(w http.ResponseWriter, r *http.Request) send {
	_, media := s.encode(r, &corev1.Node{})
	if media == runtime.ContentTypeJSON {
		w.Header().Set("Content-Type", media)
		return func(kind watch.EventType, o Object) {
			text, _ := s.encode(r, o)
			_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": json.RawMessage(text)})
		}
	}
	w.Header().Set("Content-Type", media+";stream=watch")
	frames := protobuf.LengthDelimitedFramer.NewFrameWriter(w)
	return func(kind watch.EventType, o Object) {
		text, _ := s.encode(r, o)
		event := metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: text}}
		frame, err := event.Marshal()
		if err != nil {
			panic(err)
		}
		_, _ = frames.Write(frame)
	}
}
