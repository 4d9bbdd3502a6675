package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWatchPods(t *testing.T) {
	cfg, host, _ := config(t)
	web := httptest.NewServer(server(t, cfg).Handler())
	defer web.Close()
	resp, err := http.Get(web.URL + "/pods?watch=true")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(resp.Body)
	next := func(kind, name string) *v1.Pod {
		t.Helper()
		var e podEvent
		if err := lines.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if string(e.Type) != kind || e.Object.Name != name || e.Object.Kind != "Pod" {
			t.Fatalf("event is %s %s %q, want %s Pod %q", e.Type, e.Object.Kind, e.Object.Name, kind, name)
		}
		return e.Object
	}
	next("ADDED", "p")
	if mark := next("BOOKMARK", ""); mark.Annotations[metav1.InitialEventsAnnotationKey] != "true" {
		t.Errorf("bookmark is %+v", mark)
	}
	host.change(func() {}) // nothing is told of what is as before
	host.change(func() { host.pod.Status.PodIP = "10.1.0.1" })
	if p := next("MODIFIED", "p"); p.Status.PodIP != "10.1.0.1" {
		t.Errorf("status is %+v", p.Status)
	}
	second := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q", UID: "2"}}
	host.change(func() { host.more = append(host.more, second) })
	next("ADDED", "q")
	third := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q", UID: "3"}}
	host.change(func() { host.more = []*v1.Pod{third} })
	next("DELETED", "q")
	if p := next("ADDED", "q"); p.UID != "3" {
		t.Errorf("added is %s", p.UID)
	}
}

func TestWatchPodsEndsWithItsClient(t *testing.T) {
	cfg, _, _ := config(t)
	s := server(t, cfg)
	ended := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Handler().ServeHTTP(w, r)
		close(ended)
	}))
	defer web.Close()
	resp, err := http.Get(web.URL + "/pods?watch=1")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	<-ended
}
