package kube_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/internal/kube/kubetest"
)

func TestVerbs(t *testing.T) {
	for _, contentType := range []string{"", runtime.ContentTypeJSON} {
		s := kubetest.New(t)
		maps, err := kube.NewResource(s.Client(t, contentType), kube.TypeOf(corev1.SchemeGroupVersion, "configmaps", &corev1.ConfigMap{}, &corev1.ConfigMapList{}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, in := t.Context(), maps.In("ns")
		made, err := in.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "1"}}, metav1.CreateOptions{})
		if err != nil || made.UID == "" || made.Namespace != "ns" {
			t.Fatalf("created %+v, %v", made, err)
		}
		if _, err := in.Create(ctx, made, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
			t.Errorf("created twice: %v", err)
		}
		if _, err := maps.In("other").Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("of another namespace: %v", err)
		}
		patched, err := in.Patch(ctx, "a", types.StrategicMergePatchType, []byte(`{"data":{"l":"2"}}`), metav1.PatchOptions{})
		if err != nil || patched.Data["k"] != "1" || patched.Data["l"] != "2" {
			t.Errorf("patched %+v, %v", patched, err)
		}
		if _, err := in.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			t.Errorf("updated from what was before: %v", err)
		}
		patched.Data = map[string]string{"m": "3"}
		if _, err := in.Update(ctx, patched, metav1.UpdateOptions{}); err != nil {
			t.Error(err)
		}
		if got, err := in.Get(ctx, "a", metav1.GetOptions{}); err != nil || len(got.Data) != 1 || got.Data["m"] != "3" {
			t.Errorf("got %+v, %v", got, err)
		}
		if list, err := maps.All().List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 1 {
			t.Errorf("list %+v, %v", list, err)
		}
		now := int64(0)
		if err := in.Delete(ctx, "a", metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Error(err)
		}
		if left := s.Objects("configmaps"); len(left) != 0 {
			t.Errorf("deleted, and there is %v", left)
		}
	}
}

func TestRecorder(t *testing.T) {
	s := kubetest.New(t)
	r, err := kube.NewRecorder(s.Client(t, ""), "proxy", "here", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go r.Run(t.Context())
	note := strings.Repeat("ä", 1000) // longer than what the API takes, and cut within a letter
	r.Send(kube.Event{About: corev1.ObjectReference{Kind: "Node", Name: "here"}, Reason: "Starting", Action: "Start", Note: note})
	r.Send(kube.Event{About: corev1.ObjectReference{Kind: "Service", Namespace: "ns", Name: "a"}, Warning: true, Reason: "Bad", Action: "Proxy"})
	limit, tick := time.After(10*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for len(s.Objects("events")) < 2 {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("events are %v", s.Objects("events"))
		}
	}
	of := map[string]*eventsv1.Event{}
	for _, o := range s.Objects("events") {
		of[o.GetNamespace()] = o.(*eventsv1.Event)
	}
	if e := of["default"]; e == nil || e.Type != "Normal" || len(e.Note) > 1024 || !strings.HasPrefix(note, e.Note) || e.ReportingInstance != "proxy-here" {
		t.Errorf("of a node: %+v", e)
	}
	if e := of["ns"]; e == nil || e.Type != "Warning" || e.Regarding.Name != "a" || e.EventTime.IsZero() {
		t.Errorf("of a service: %+v", e)
	}
	var none *kube.Recorder
	none.Send(kube.Event{}) // that of a machine without an API server
}

func TestNodeName(t *testing.T) {
	if got, err := kube.NodeName(" Node-1\n"); got != "node-1" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := kube.NodeName(" "); err == nil {
		t.Error("a name of blanks is taken")
	}
}
