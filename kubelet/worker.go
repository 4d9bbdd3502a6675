package kubelet

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/runtime"
	"github.com/orlop/orlop/kubelet/status"
)

// stage is how far a pod has come.
//
//	syncing ──deleted, removed, evicted, done──▶ ending ──all stopped──▶ ended ──deleted, removed, begun anew──▶ (gone)
type stage int

const (
	syncing stage = iota // its containers are kept as the spec wants them
	ending               // its containers are being stopped
	ended                // nothing of it runs or will run again; its volumes and cgroups are gone
)

// How long a worker waits before it repeats what has failed.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// worker keeps one pod. All it does is done by one goroutine, so a pod never has two minds.
type worker struct {
	k        *Kubelet
	uid      types.UID
	fullName string
	log      *slog.Logger
	pokes    chan struct{} // the pod, or something that it depends on, is another
	stirs    chan struct{} // something happened to it in the runtime
	echoes   chan struct{} // the API server has another status of it

	mu       sync.Mutex
	spec     *v1.Pod
	admitted bool
	stage    stage
	done     bool                                // its containers have ended by themselves, and for good
	freed    bool                                // what it held of the node is free, since it ended
	begun    bool                                // another worker shall begin with the pod anew, once it ended here
	removed  bool                                // no source has it any more
	since    metav1.Time                         // when it was removed
	final    *status.Final                       // set if the pod was ended by something but its containers
	grace    *int64                              // seconds that final gives, instead of the pod's
	cancel   context.CancelFunc                  // of what is under way; nil between
	reasons  map[string]v1.ContainerStateWaiting // why containers wait, by their names

	stirred time.Time // when something last happened to the pod in the runtime
	read    time.Time // when what the runtime has of it was last asked for, all of which was heeded

	held     allotment        // nil before the pod was let in
	resizing *v1.PodCondition // of a resize that is under way or waits
	hooked   string           // the ID of the container whose postStart hook runs

	began   time.Time   // when the pod was first seen here
	counted atomic.Bool // its start, see countStart

	// What only the worker's goroutine touches.
	passes   int               // over the pod so far
	retries  int               // failures in a row
	stopped  bool              // liveness probes were ended
	vanished bool              // the runtime has nothing of the pod any more
	tried    map[string]string // resources that containers were given, by their IDs
}

func newWorker(k *Kubelet, p *v1.Pod) *worker {
	w := &worker{
		k: k, uid: p.UID, fullName: pod.FullName(p), spec: p, pokes: make(chan struct{}, 1), stirs: make(chan struct{}, 1), echoes: make(chan struct{}, 1), admitted: ranBefore(p),
		log: k.log.With("pod", pod.Ref(p), "uid", p.UID), began: time.Now(), reasons: map[string]v1.ContainerStateWaiting{}, tried: map[string]string{},
	}
	w.poke()
	return w
}

func (w *worker) poke() {
	select {
	case w.pokes <- struct{}{}:
	default: // it will look anyhow
	}
}

// stir has the worker look at what the runtime has of the pod, unless it has done so since.
func (w *worker) stir(at time.Time) {
	w.mu.Lock()
	if at.After(w.stirred) {
		w.stirred = at
	}
	w.mu.Unlock()
	select {
	case w.stirs <- struct{}{}:
	default:
	}
}

// heeded is true if all that happened in the runtime was seen and acted upon: most of it the worker itself has caused.
func (w *worker) heeded() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.read.After(w.stirred)
}

// look reads what the runtime has of the pod. Who calls it must act upon all of it.
func (w *worker) look(ctx context.Context) (*runtime.Pod, error) {
	began := time.Now()
	have, err := w.k.reader.Pod(ctx, w.uid)
	if err == nil {
		w.mu.Lock()
		w.read = began
		w.mu.Unlock()
	}
	return have, err
}

func (w *worker) pod() *v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.spec
}

// withDeletion adds when the pod was removed.
func (w *worker) withDeletion(p *v1.Pod) *v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.removed || p.DeletionTimestamp != nil {
		return p
	}
	out := *p
	out.DeletionTimestamp = &w.since
	return &out
}

// active is true for a pod that takes resources of the node.
func (w *worker) active() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.admitted && w.stage != ended
}

// update takes a changed pod. If that ends it, or ends it sooner, what is under way is broken off.
func (w *worker) update(p *v1.Pod) {
	w.mu.Lock()
	old := w.spec
	w.spec = p
	sooner := p.DeletionTimestamp != nil && (old.DeletionTimestamp == nil || pod.GracePeriodSeconds(p) < pod.GracePeriodSeconds(old))
	if sooner {
		w.breakOffLocked()
	}
	w.mu.Unlock()
	w.k.changes.ring()
	if isNews(old, p) {
		w.poke()
		return
	}
	select {
	case w.echoes <- struct{}{}:
	default:
	}
}

// isNews is false for a pod in which nothing is another but what is told of it: most likely what we ourselves have told.
func isNews(old, p *v1.Pod) bool {
	foreign := func(of *v1.Pod) []v1.PodCondition {
		return slices.DeleteFunc(slices.Clone(of.Status.Conditions), func(c v1.PodCondition) bool { return status.IsOwn(c.Type) })
	}
	return old.Generation != p.Generation || !old.DeletionTimestamp.Equal(p.DeletionTimestamp) ||
		pod.GracePeriodSeconds(old) != pod.GracePeriodSeconds(p) || !maps.Equal(old.Labels, p.Labels) ||
		!maps.Equal(old.Annotations, p.Annotations) || !equality.Semantic.DeepEqual(foreign(old), foreign(p))
}

// remove ends a pod that its source no longer has.
func (w *worker) remove() {
	w.mu.Lock()
	if !w.removed {
		w.removed, w.since = true, metav1.Now()
		if w.stage == syncing {
			w.breakOffLocked()
		}
	}
	w.mu.Unlock()
	w.k.changes.ring()
	w.poke()
}

// end ends a pod for a reason of the node's, or sooner if it is being ended. The first reason counts, and the least grace.
func (w *worker) end(final status.Final, graceSeconds *int64) {
	w.mu.Lock()
	if w.stage != ended && !w.done {
		sooner := graceSeconds != nil && *graceSeconds < w.graceLocked()
		if w.stage == syncing || sooner {
			w.breakOffLocked()
		}
		if sooner || (w.final == nil && w.stage == syncing) {
			w.grace = graceSeconds
		}
		w.final = cmp.Or(w.final, &final)
	}
	w.mu.Unlock()
	w.poke()
}

// graceLocked is how many seconds the pod gets to end.
func (w *worker) graceLocked() int64 {
	if w.grace != nil {
		return *w.grace
	}
	return pod.GracePeriodSeconds(w.spec)
}

func (w *worker) breakOffLocked() {
	if w.cancel != nil {
		w.cancel()
	}
}

// view is what one turn of the worker is about.
type view struct {
	pod     *v1.Pod
	stage   stage
	removed bool
	final   *status.Final
	grace   *int64
}

// begin takes a view and the context of a turn, which ends when the pod's wishes change so that the turn is pointless.
func (w *worker) begin(ctx context.Context) (context.Context, view) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx, w.cancel = context.WithCancel(ctx)
	if w.stage == syncing && (w.spec.DeletionTimestamp != nil || w.removed || w.final != nil || hasEnded(w.spec)) {
		w.stage = ending
	}
	return ctx, view{pod: w.spec, stage: w.stage, removed: w.removed, final: w.final, grace: w.grace}
}

// ranBefore is true for a pod that was let in before this process began: what it holds counts before all pods that come now.
func ranBefore(p *v1.Pod) bool { return !pod.IsStatic(p) && p.Status.StartTime != nil && !hasEnded(p) }

// hasEnded is true for a pod that the API server knows to have ended: it is never run again, whatever the runtime has of it.
func hasEnded(p *v1.Pod) bool { return !pod.IsStatic(p) && pod.IsTerminal(p.Status.Phase) }

func (w *worker) finish() {
	w.mu.Lock()
	w.cancel()
	w.cancel = nil
	w.mu.Unlock()
}

func (w *worker) move(to stage) {
	w.mu.Lock()
	w.stage = to
	w.mu.Unlock()
}

// complete ends a pod that has done its work.
func (w *worker) complete() {
	w.mu.Lock()
	w.stage, w.done = ending, true
	w.mu.Unlock()
	w.poke()
}

// wait notes why a container waits.
func (w *worker) wait(container string, why v1.ContainerStateWaiting) {
	w.mu.Lock()
	w.reasons[container] = why
	w.mu.Unlock()
}

// unwait forgets why a container waited.
func (w *worker) unwait(container string) {
	w.mu.Lock()
	delete(w.reasons, container)
	w.mu.Unlock()
}

// meanwhile does what may take long, and tells what happens to the pod while it does: that a container has ended, or is no
// longer ready.
func (w *worker) meanwhile(ctx context.Context, v view, do func() error) error {
	done, told := make(chan struct{}), make(chan struct{})
	poked := false
	go func() {
		defer close(told)
		for {
			select {
			case <-done:
				return
			case <-w.pokes:
				poked = true
			case <-w.stirs: // which is looked at again after what is done now
			}
			if err := w.reportNow(ctx, v); err != nil && ctx.Err() == nil {
				w.log.Debug("status not told", "err", err)
			}
		}
	}()
	err := do()
	close(done)
	<-told
	if poked && err == nil { // one that came meanwhile may have been about more than the status; a failure has its own delay
		w.poke()
	}
	return err
}

// run works until the pod is gone, or ctx ends.
func (w *worker) run(ctx context.Context) {
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.pokes:
		case <-w.stirs:
			if w.heeded() {
				continue
			}
		case <-w.echoes:
			if !w.k.status.Differs(w.uid, w.pod()) {
				continue
			}
		case <-wait.C:
		}
		turn, v := w.begin(ctx)
		began := time.Now()
		again, gone, err := w.turn(turn, v)
		w.k.cfg.Metrics.PodWorked(w.operation(v.stage), time.Since(began))
		cut := turn.Err() != nil
		w.finish()
		switch {
		case gone:
			return
		case err != nil && !cut:
			w.log.Warn("pod not in order; will be tried again", "err", err)
			w.retries++
			again = retryDelay(w.retries)
		case err == nil:
			w.retries = 0
		default:
			again = 0 // broken off for something more urgent
		}
		wait.Reset(again)
	}
}

// operation is kubelet's name for a pass.
func (w *worker) operation(s stage) string {
	w.passes++
	switch {
	case s != syncing:
		return "kill"
	case w.passes == 1:
		return "create"
	}
	return "sync"
}

// countStart counts how long the pod took until its containers ran, once. One that ran before this process did counts for
// nothing.
func (w *worker) countStart(s *v1.PodStatus) {
	if s.Phase != v1.PodRunning || len(s.ContainerStatuses) == 0 || w.counted.Load() {
		return
	}
	fresh := false
	for _, c := range s.ContainerStatuses {
		if c.State.Running == nil {
			return
		}
		fresh = fresh || c.State.Running.StartedAt.After(w.began)
	}
	if !w.counted.Swap(true) && fresh {
		w.k.cfg.Metrics.PodStarted(time.Since(w.began))
	}
}

func retryDelay(failures int) time.Duration {
	delay := firstRetry
	for range failures - 1 {
		delay = min(2*delay, lastRetry)
	}
	return delay
}

// turn does what a pod's stage asks for, and tells when to look again at the latest.
func (w *worker) turn(ctx context.Context, v view) (again time.Duration, gone bool, err error) {
	switch v.stage {
	case syncing:
		again, err = w.sync(ctx, v)
		return again, false, err
	case ending:
		if err := w.stop(ctx, v); err != nil {
			return 0, false, err
		}
		w.move(ended)
		fallthrough
	default:
		gone, err = w.cleanUp(ctx, v)
		return w.k.cfg.Timing.Sync, gone, err
	}
}
