package api

import (
	"encoding/json"
	"net/http"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// podEvent is one line of a stream of pods, in the form of an API server's.
type podEvent struct {
	Type   watch.EventType `json:"type"`
	Object *v1.Pod         `json:"object"`
}

// watchPods serves GET /pods?watch=true, which kubelet does not have: it is for who needs to know the pods of a node without
// an API server. As in an API server's stream (KEP-3157), all pods come first, then a bookmark, then what changes. Of
// changes in quick succession the last alone is told.
func (s *Server) watchPods(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	lines, flush := json.NewEncoder(w), http.NewResponseController(w).Flush
	told := map[types.UID]*v1.Pod{}
	for first := true; ; first = false {
		changed := s.cfg.Host.Changed()
		events := podEvents(told, s.cfg.Host.Pods())
		if first {
			mark := metav1.ObjectMeta{Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"}}
			events = append(events, podEvent{watch.Bookmark, &v1.Pod{ObjectMeta: mark}})
		}
		for _, e := range events {
			e.Object.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
			if err := lines.Encode(e); err != nil {
				return // the client has left
			}
		}
		if err := flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

// podEvents are how pods differ from what was told, which it brings up to date. What is gone comes first: its name may be
// another's now.
func podEvents(told map[types.UID]*v1.Pod, pods []*v1.Pod) []podEvent {
	now := map[types.UID]bool{}
	var gone, events []podEvent
	for _, p := range pods {
		now[p.UID] = true
		old, kind := told[p.UID], watch.Added
		if old != nil {
			kind = watch.Modified
		}
		if old != nil && equality.Semantic.DeepEqual(old.ObjectMeta, p.ObjectMeta) && equality.Semantic.DeepEqual(old.Spec, p.Spec) && equality.Semantic.DeepEqual(old.Status, p.Status) {
			continue
		}
		shown := *p
		told[p.UID] = &shown
		events = append(events, podEvent{kind, &shown})
	}
	for uid, p := range told {
		if !now[uid] {
			delete(told, uid)
			gone = append(gone, podEvent{watch.Deleted, p})
		}
	}
	return append(gone, events...)
}
