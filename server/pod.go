package server

import (
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// pod is a pod in memory: its record, and what is under way with it.
type pod struct {
	progress
	id   store.PodID
	name string  // from its metadata, unique among pods that are not on their way out
	want podPlan // its config, parsed
	dir  string  // below RunRoot; gone after a reboot

	made     *flight // its create
	stopping flights
	removing flights
	turn     turn // held by create, stop, remove and update

	mu      sync.Mutex // held while a record is written
	records *store.Store
	rec     atomic.Pointer[store.Pod]
	view    atomic.Pointer[cri.PodSandbox] // rec as lists show it

	retried atomic.Bool  // a retry of what is pending is under way
	initPid atomic.Int32 // of the init of a shared PID namespace, 0 for none
}

func (s *Server) newPod(rec *store.Pod, want podPlan, made *flight) *pod {
	p := &pod{
		id: rec.ID, name: podName(rec.Config.GetMetadata()), want: want,
		dir:  filepath.Join(s.cfg.RunRoot, "pods", string(rec.ID)),
		made: made, turn: newTurn(), records: s.records,
	}
	p.timings = maps.Clone(rec.Timings) // readers have the record
	p.publish(rec)
	return p
}

func (p *pod) state() store.PodState { return p.rec.Load().State }

// visible tells whether clients may see the pod: one that is being made is not there yet, one that is being removed
// not any more.
func (p *pod) visible() bool {
	switch p.state() {
	case store.PodCreating, store.PodRemoving:
		return false
	}
	return true
}

// publish shows a record to readers.
func (p *pod) publish(rec *store.Pod) {
	p.rec.Store(rec)
	p.view.Store(&cri.PodSandbox{
		Id:             string(rec.ID),
		Metadata:       rec.Config.GetMetadata(),
		State:          criPodState(rec.State),
		CreatedAt:      rec.CreatedAt.UnixNano(),
		Labels:         rec.Config.GetLabels(),
		Annotations:    rec.Config.GetAnnotations(),
		RuntimeHandler: rec.Handler,
	})
}

// move is the only writer of the state. What edit changes is written with it; edit may be nil.
func (p *pod) move(to store.PodState, edit func(*store.Pod)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := p.rec.Load().Move(to)
	if err != nil {
		return err
	}
	if edit != nil {
		edit(next)
	}
	return p.putLocked(next)
}

// write changes what is on record in the same state.
func (p *pod) write(edit func(*store.Pod)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := *p.rec.Load()
	edit(&next)
	return p.putLocked(&next)
}

func (p *pod) putLocked(next *store.Pod) error {
	if err := p.records.PutPod(next); err != nil {
		return err
	}
	p.publish(next) // memory follows disk and never leads it
	return nil
}

// note keeps a fact that a step found, and goes to disk with the next state. If it is lost before, then so is the
// state: the pod is undone, and the undo steps do without.
func (p *pod) note(edit func(*store.Pod)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := *p.rec.Load()
	edit(&next)
	p.publish(&next)
}

// nsDir is where the pod's namespaces are pinned.
func (p *pod) nsDir() string { return filepath.Join(p.dir, "ns") }

func criPodState(s store.PodState) cri.PodSandboxState {
	if s == store.PodReady {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}
