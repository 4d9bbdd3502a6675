package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods are those of a node, as its kubelet's API tells them.
type Pods struct {
	// URL is where the kubelet serves its API, as "https://127.0.0.1:10250".
	URL string
	// Client has what is needed to trust the kubelet, and to be trusted; nil is http.DefaultClient.
	Client *http.Client
}

// How a kubelet is asked.
const (
	// podsEvery is how often a kubelet is asked that can't stream: the real one.
	podsEvery = 5 * time.Second
	// podsRetry is how long the first wait lasts after a stream was lost, and podsRetryMax the longest one.
	podsRetry    = 250 * time.Millisecond
	podsRetryMax = 10 * time.Second
)

// follow sends all pods, again and again when any changed, until ctx ends; then it closes the channel. While the kubelet
// can't be reached, what it said before stays: its pods run on without it. With nil Pods nothing is ever sent.
func (p *Pods) follow(ctx context.Context, log *slog.Logger) <-chan members {
	out := make(chan members)
	go func() {
		defer close(out)
		if p == nil {
			<-ctx.Done()
			return
		}
		p.ask(ctx, out, log)
	}()
	return out
}

// ask asks again and again. Why it failed is told once for each reason.
func (p *Pods) ask(ctx context.Context, out chan<- members, log *slog.Logger) {
	wait, told := podsRetry, ""
	for ctx.Err() == nil {
		f := &podFollower{Pods: p, out: out, all: members{}}
		err := f.stream(ctx)
		if f.complete {
			wait, told = podsRetry, ""
		}
		if err == nil {
			wait = podsEvery
		} else if ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			log.Warn("the kubelet does not tell its pods; those of before stay", "url", p.URL, "err", err)
		}
		pause(ctx, wait)
		wait = min(2*wait, podsRetryMax)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// podFollower reads one answer of a kubelet.
type podFollower struct {
	*Pods
	out      chan<- members
	all      members
	complete bool // whether all pods were told
}

// podsAnswer is an event of a stream, or, from a kubelet that does not know of streams, the whole list.
type podsAnswer struct {
	Kind   string
	Items  []corev1.Pod
	Type   string
	Object corev1.Pod
}

// stream asks for pods as an API server is asked for a stream (KEP-3157): all that there are, a bookmark, and then what
// changes. It returns nil after an answer that is the list alone.
func (f *podFollower) stream(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.URL+"/pods?watch=true", nil)
	if err != nil {
		return err
	}
	client := f.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("kubelet answers %s", resp.Status)
	}
	for decoder := json.NewDecoder(resp.Body); ; {
		var a podsAnswer
		if err := decoder.Decode(&a); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("stream ended")
			}
			return err
		}
		if a.Kind == "PodList" {
			for i := range a.Items {
				f.set(&a.Items[i])
			}
			f.complete = true
			f.send(ctx)
			return nil
		}
		f.event(a)
		if f.complete {
			f.send(ctx)
		}
	}
}

func (f *podFollower) event(a podsAnswer) {
	switch a.Type {
	case "ADDED", "MODIFIED":
		f.set(&a.Object)
	case "DELETED":
		delete(f.all[a.Object.Namespace], string(a.Object.UID))
	case "BOOKMARK":
		f.complete = f.complete || a.Object.Annotations[metav1.InitialEventsAnnotationKey] == "true"
	}
}

func (f *podFollower) set(p *corev1.Pod) {
	one, ok := reduceMember(p)
	if !ok {
		delete(f.all[p.Namespace], string(p.UID))
		return
	}
	if f.all[p.Namespace] == nil {
		f.all[p.Namespace] = map[string]named{}
	}
	f.all[p.Namespace][string(p.UID)] = one
}

// send gives away a copy: the next event changes what is here.
func (f *podFollower) send(ctx context.Context) {
	all := members{}
	for namespace, pods := range f.all {
		all[namespace] = maps.Clone(pods)
	}
	select {
	case f.out <- all:
	case <-ctx.Done():
	}
}
