package kube

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

// Event tells users of an object what a node did with it, or could not do.
type Event struct {
	About   corev1.ObjectReference
	Warning bool
	// Reason is why, as one word for machines, and Action what was attempted. Note is for people.
	Reason, Action, Note string
}

// What is sent when events come faster: each node of a cluster may tell of the same object.
const (
	eventQueue    = 100 // more are dropped
	eventPace     = 100 * time.Millisecond
	eventTimeout  = 10 * time.Second
	maxNote       = 1024 // of the API
	eventsDefault = metav1.NamespaceDefault
)

// Recorder sends events to an API server. What can't be sent is logged and forgotten: events are for people, and what they
// tell of must not wait for them.
type Recorder struct {
	events           *Resource[*eventsv1.Event, *eventsv1.EventList]
	controller, host string
	queue            chan Event
	log              *slog.Logger
}

// NewRecorder makes a recorder for a controller, as "kube-proxy", on a host. Its Run must be called.
func NewRecorder(c *Client, controller, host string, log *slog.Logger) (*Recorder, error) {
	events, err := NewResource(c, TypeOf(eventsv1.SchemeGroupVersion, "events", &eventsv1.Event{}, &eventsv1.EventList{}))
	if err != nil {
		return nil, err
	}
	return &Recorder{events: events, controller: controller, host: host, queue: make(chan Event, eventQueue), log: log}, nil
}

// Send does not wait. It does nothing for a nil Recorder, which is that of a machine without an API server.
func (r *Recorder) Send(e Event) {
	if r == nil {
		return
	}
	select {
	case r.queue <- e:
	default:
		r.log.Debug("event dropped: there are too many", "about", e.About.Namespace+"/"+e.About.Name, "reason", e.Reason, "note", e.Note)
	}
}

// Run sends until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	pace := time.NewTicker(eventPace)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			if err := r.send(ctx, e); err != nil && ctx.Err() == nil {
				r.log.Debug("event not sent", "about", e.About.Namespace+"/"+e.About.Name, "reason", e.Reason, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
	}
}

func (r *Recorder) send(ctx context.Context, e Event) error {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	event := r.event(e, time.Now())
	_, err := r.events.In(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
	return err
}

// event is in the namespace of what it is about; what is in none has its events in the default one.
func (r *Recorder) event(e Event, now time.Time) *eventsv1.Event {
	kind, note, namespace := corev1.EventTypeNormal, e.Note, e.About.Namespace
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	if len(note) > maxNote {
		note = strings.ToValidUTF8(note[:maxNote], "")
	}
	if namespace == "" {
		namespace = eventsDefault
	}
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      fmt.Sprintf("%.200s.%x%s", e.About.Name, now.UnixNano(), rand.String(3)),
		},
		EventTime: metav1.NewMicroTime(now), Type: kind, Reason: e.Reason, Action: e.Action, Note: note, Regarding: e.About,
		ReportingController: r.controller, ReportingInstance: r.controller + "-" + r.host,
	}
}
