package server

import (
	"context"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// container is a container in memory: its record, and what is under way with it.
type container struct {
	progress
	id    store.ContainerID
	name  string         // from its metadata and its pod's, unique among containers that are not on their way out
	pod   *pod           // nil if the pod's record was lost; then the container is on its way out
	dir   string         // below Root
	image *cri.ImageSpec // of the config, with the name that people know

	made     *flight // its create
	cancel   context.CancelFunc
	starting flights
	removing flights
	turn     turn // held by create, start, update and remove, never while waiting for it to end
	stop     stop

	mu      sync.Mutex // held while a record is written
	records *store.Store
	rec     atomic.Pointer[store.Container]
	view    atomic.Pointer[cri.Container] // rec as lists show it

	retried  atomic.Bool   // a retry of what is pending is under way
	exited   chan struct{} // closed when its end is on record
	exitOnce sync.Once
}

func (s *Server) newContainer(rec *store.Container, p *pod, made *flight) *container {
	c := &container{
		id: rec.ID, name: containerName(p, rec), pod: p,
		dir:  filepath.Join(s.cfg.Root, "containers", string(rec.ID)),
		made: made, cancel: func() {}, turn: newTurn(), records: s.records,
		exited: make(chan struct{}),
	}
	c.timings = maps.Clone(rec.Timings) // readers have the record
	c.image = proto.CloneOf(rec.Config.GetImage())
	c.image.Image = rec.ImageName
	c.publish(rec)
	return c
}

func (c *container) state() store.ContainerState { return c.rec.Load().State }

// visible tells whether clients may see the container, as with pods.
func (c *container) visible() bool {
	switch c.state() {
	case store.ContainerCreating, store.ContainerRemoving:
		return false
	}
	return true
}

// alive tells whether it may have a process.
func (c *container) alive() bool {
	switch c.state() {
	case store.ContainerCreated, store.ContainerRunning:
		return true
	}
	return false
}

// publish shows a record to readers.
func (c *container) publish(rec *store.Container) {
	c.rec.Store(rec)
	c.view.Store(&cri.Container{
		Id:           string(rec.ID),
		PodSandboxId: string(rec.Pod),
		Metadata:     rec.Config.GetMetadata(),
		Image:        c.image,
		ImageRef:     rec.ImageRef,
		ImageId:      rec.ImageID,
		State:        criContainerState(rec.State),
		CreatedAt:    rec.CreatedAt.UnixNano(),
		Labels:       rec.Config.GetLabels(),
		Annotations:  rec.Config.GetAnnotations(),
	})
	if rec.Exit != nil || rec.State == store.ContainerRemoving {
		c.exitOnce.Do(func() { close(c.exited) })
	}
}

// move is the only writer of the state. What edit changes is written with it; edit may be nil.
func (c *container) move(to store.ContainerState, edit func(*store.Container)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moveLocked(to, edit)
}

func (c *container) moveLocked(to store.ContainerState, edit func(*store.Container)) error {
	next, err := c.rec.Load().Move(to)
	if err != nil {
		return err
	}
	if edit != nil {
		edit(next)
	}
	return c.putLocked(next)
}

// write changes what is on record in the same state.
func (c *container) write(edit func(*store.Container)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.rec.Load()
	edit(&next)
	return c.putLocked(&next)
}

func (c *container) putLocked(next *store.Container) error {
	if err := c.records.PutContainer(next); err != nil {
		return err
	}
	c.publish(next) // memory follows disk and never leads it
	return nil
}

// note keeps a fact that a step found, as [pod.note] does.
func (c *container) note(edit func(*store.Container)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.rec.Load()
	edit(&next)
	c.publish(&next)
}

// containersOf returns the containers of a pod, also those that clients don't see.
func (s *Server) containersOf(p *pod) []*container {
	var of []*container
	for _, c := range s.containers.all() {
		if c.pod == p {
			of = append(of, c)
		}
	}
	return of
}

func criContainerState(s store.ContainerState) cri.ContainerState {
	switch s {
	case store.ContainerCreated:
		return cri.ContainerState_CONTAINER_CREATED
	case store.ContainerRunning:
		return cri.ContainerState_CONTAINER_RUNNING
	case store.ContainerExited:
		return cri.ContainerState_CONTAINER_EXITED
	}
	return cri.ContainerState_CONTAINER_UNKNOWN // those that clients do not see
}
