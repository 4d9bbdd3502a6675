package kubelet

import (
	"cmp"
	"context"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/pod"
)

// registry knows all pods that are wanted here or still end here, and has one worker for each. It is the sink of the
// sources.
type registry struct {
	k   *Kubelet
	ctx context.Context // of all workers, set by start before the sources begin
	all sync.WaitGroup

	mu      sync.Mutex
	workers map[types.UID]*worker
	mirrors map[string]*v1.Pod   // by full name, as the API server has them
	waiting map[string][]*v1.Pod // static pods whose predecessor of the same full name still ends, oldest first
	ready   map[string]bool      // sources that were read
}

func newRegistry(k *Kubelet) *registry {
	return &registry{
		k: k, workers: map[types.UID]*worker{}, mirrors: map[string]*v1.Pod{},
		waiting: map[string][]*v1.Pod{}, ready: map[string]bool{},
	}
}

func (r *registry) start(ctx context.Context) { r.ctx = ctx }

func (r *registry) wait() { r.all.Wait() }

// Set is told of a pod that is new or changed.
func (r *registry) Set(p *v1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pod.IsMirror(p) {
		r.mirrors[pod.FullName(p)] = p
		for _, w := range r.workers {
			if w.fullName == pod.FullName(p) {
				w.poke()
			}
		}
		return
	}
	if !pod.IsStatic(p) {
		p = fromAPI(p)
	}
	r.setLocked(p)
}

// fromAPI marks where the pod comes from; the informer's own copy stays as it is.
func fromAPI(p *v1.Pod) *v1.Pod {
	p = p.DeepCopy()
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[pod.SourceAnnotation] = pod.APISource
	return p
}

func (r *registry) setLocked(p *v1.Pod) {
	if w := r.workers[p.UID]; w != nil {
		w.update(p)
		return
	}
	if pod.IsStatic(p) && r.busyLocked(pod.FullName(p)) {
		r.waiting[pod.FullName(p)] = append(r.waiting[pod.FullName(p)], p)
		return
	}
	r.addLocked(newWorker(r.k, p))
}

func (r *registry) busyLocked(fullName string) bool {
	for _, w := range r.workers {
		if w.fullName == fullName {
			return true
		}
	}
	return false
}

func (r *registry) addLocked(w *worker) {
	r.workers[w.uid] = w
	r.k.changes.ring()
	r.all.Go(func() {
		w.run(r.ctx)
		if r.ctx.Err() == nil {
			r.remove(w)
		}
	})
}

// remove is called when a worker has nothing left to do for ever.
func (r *registry) remove(w *worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.workers, w.uid)
	r.k.changes.ring()
	queue := r.waiting[w.fullName]
	if len(queue) == 0 {
		return
	}
	next := queue[len(queue)-1] // only the newest manifest counts
	delete(r.waiting, w.fullName)
	r.setLocked(next)
}

// Delete is told that a source no longer has a pod.
func (r *registry) Delete(p *v1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := pod.FullName(p)
	if pod.IsMirror(p) {
		if m := r.mirrors[name]; m != nil && m.UID == p.UID {
			delete(r.mirrors, name)
		}
		for _, w := range r.workers {
			if w.fullName == name {
				w.poke() // it wants a new one
			}
		}
		return
	}
	r.waiting[name] = slices.DeleteFunc(r.waiting[name], func(q *v1.Pod) bool { return q.UID == p.UID })
	if w := r.workers[p.UID]; w != nil {
		w.remove()
	}
}

// Ready is told that a source was read.
func (r *registry) Ready(source string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ready[source] = true
}

// allReady is true once every source was read: what none of them has, nobody wants.
func (r *registry) allReady() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range r.k.cfg.Names {
		if !r.ready[name] {
			return false
		}
	}
	return true
}

// adopt ends a pod that the runtime has and no source.
func (r *registry) adopt(p *v1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.workers[p.UID] != nil {
		return
	}
	w := newWorker(r.k, p)
	w.removed, w.since = true, metav1.Now()
	r.addLocked(w)
}

// wake looks at a pod soon.
func (r *registry) wake(uid types.UID) {
	r.mu.Lock()
	w := r.workers[uid]
	r.mu.Unlock()
	if w != nil {
		w.poke()
	}
}

// mirror is the API server's picture of a static pod; nil if there is none.
func (r *registry) mirror(fullName string) *v1.Pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mirrors[fullName]
}

// known are the UIDs of all pods that have a worker.
func (r *registry) known() map[types.UID]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	uids := map[types.UID]bool{}
	for uid := range r.workers {
		uids[uid] = true
	}
	return uids
}

// list are all pods that have a worker, sorted by name.
func (r *registry) list() []*v1.Pod {
	return r.where(func(*worker) bool { return true })
}

// active are the pods that were admitted and have not ended: what of the node is taken.
func (r *registry) active() []*v1.Pod {
	return r.show((*worker).active, (*worker).holding)
}

func (r *registry) where(keep func(*worker) bool) []*v1.Pod { return r.show(keep, (*worker).pod) }

func (r *registry) show(keep func(*worker) bool, pick func(*worker) *v1.Pod) []*v1.Pod {
	r.mu.Lock()
	workers := make([]*worker, 0, len(r.workers))
	for _, w := range r.workers {
		workers = append(workers, w)
	}
	r.mu.Unlock()
	var pods []*v1.Pod
	for _, w := range workers {
		if keep(w) {
			pods = append(pods, pick(w))
		}
	}
	slices.SortFunc(pods, func(a, b *v1.Pod) int { return cmp.Compare(pod.FullName(a), pod.FullName(b)) })
	return pods
}

// find is a pod's worker; nil if there is none.
func (r *registry) find(uid types.UID) *worker {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.workers[uid]
}

// running are the pods that are kept, with their newest statuses.
func (r *registry) running() []*v1.Pod {
	pods := r.where(func(w *worker) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.admitted && w.stage == syncing && w.final == nil
	})
	for i, p := range pods {
		pods[i] = r.k.withStatus(p)
	}
	return pods
}
