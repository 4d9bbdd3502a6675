package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How often all pods are listed to find what no event told: seldom while events come, and as often as kubelet's relist
// while they do not.
const (
	listWithEvents    = 30 * time.Second
	listWithoutEvents = time.Second
	retryEvents       = time.Second
	listHealthy       = 3 * time.Minute // kubelet calls its runtime unhealthy if no list came for as long
)

// Watcher tells which pods changed in the runtime.
type Watcher struct {
	reader  *Reader
	changed func(uid types.UID, at time.Time)
	listed  func(took time.Duration)
	log     *slog.Logger

	streamAt atomic.Int64 // when the stream of events was opened, nanoseconds since 1970; 0 without one
	listedAt atomic.Int64 // nanoseconds since 1970
	relist   chan struct{}
}

// NewWatcher calls changed, which must not block, for each pod in which something happened, with when it did at the latest, and
// listed for each list of all pods.
func NewWatcher(reader *Reader, changed func(uid types.UID, at time.Time), listed func(took time.Duration), log *slog.Logger) *Watcher {
	w := &Watcher{reader: reader, changed: changed, listed: listed, log: log, relist: make(chan struct{}, 1)}
	w.listedAt.Store(time.Now().UnixNano())
	return w
}

// Healthy is an error if the runtime has answered no list for three minutes.
func (w *Watcher) Healthy() error {
	if age := time.Since(time.Unix(0, w.listedAt.Load())); age > listHealthy {
		return fmt.Errorf("the runtime last answered a list %s ago; threshold is %s", age.Round(time.Millisecond), listHealthy)
	}
	return nil
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.follow(ctx)
	}()
	defer func() { <-done }()
	known := map[types.UID]*Listed{}
	for {
		began := time.Now()
		if now, err := w.reader.List(ctx); err == nil {
			w.listed(time.Since(began))
			w.listedAt.Store(time.Now().UnixNano())
			for uid := range differ(known, now) {
				w.changed(uid, time.Now())
			}
			known = now
		} else if ctx.Err() == nil {
			w.log.Warn("runtime does not answer", "err", err)
		}
		wait := listWithoutEvents
		if w.streaming() {
			wait = listWithEvents
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-w.relist:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// follow reads events, one stream after the other. What happened between two streams, the list finds.
func (w *Watcher) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := w.stream(ctx)
		w.streamAt.Store(0)
		if ctx.Err() != nil {
			return
		}
		w.listNow()
		if status.Code(err) == codes.Unimplemented {
			w.log.Info("runtime has no container events; pods are listed each second")
			return
		}
		w.log.Debug("container events ended", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryEvents):
		}
	}
}

func (w *Watcher) stream(ctx context.Context) error {
	stream, err := w.reader.client.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return err
	}
	w.streamAt.Store(time.Now().UnixNano())
	for {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		if uid := event.GetPodSandboxStatus().GetMetadata().GetUid(); uid != "" {
			w.changed(types.UID(uid), timeOf(event))
		} else {
			w.listNow() // an event without its pod
		}
	}
}

// delivery is how long an event may have been on its way. One that says that it is older, or of the future, is not believed: clocks
// are set.
const delivery = time.Second

// timeOf is when an event happened, by the clock of this process that is never set.
func timeOf(e *cri.ContainerEventResponse) time.Time {
	now := time.Now()
	age := now.Sub(time.Unix(0, e.CreatedAt))
	if age < 0 || age > delivery {
		return now
	}
	return now.Add(-age)
}

// streaming is true for a stream that did not fail at once: nothing else tells that a quiet one works.
func (w *Watcher) streaming() bool {
	at := w.streamAt.Load()
	return at != 0 && time.Since(time.Unix(0, at)) > listWithoutEvents
}

func (w *Watcher) listNow() {
	select {
	case w.relist <- struct{}{}:
	default:
	}
}

// differ yields the pods in which a sandbox or container came, went, or changed its state.
func differ(before, after map[types.UID]*Listed) map[types.UID]bool {
	found := map[types.UID]bool{}
	for uid, a := range after {
		b := before[uid]
		if b == nil || !sameItems(a.Sandboxes, b.Sandboxes) || !sameItems(a.Containers, b.Containers) {
			found[uid] = true
		}
	}
	for uid := range before {
		if after[uid] == nil {
			found[uid] = true
		}
	}
	return found
}

func sameItems(a, b []Item) bool {
	if len(a) != len(b) {
		return false
	}
	for _, item := range a {
		if !slices.Contains(b, item) {
			return false
		}
	}
	return true
}
