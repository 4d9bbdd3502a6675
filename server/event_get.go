package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventBuffer is how many events a client may be behind. At the rate of a node that starts all of its pods at once
// that is some seconds.
const eventBuffer = 1024

// errSlow ends the stream of a client that does not read: it lists and subscribes again, which is what it must do
// after a lost connection anyway.
var errSlow = errors.New("events are not read fast enough; list all containers and subscribe again")

// errShutdown ends streams when the daemon does.
var errShutdown = fmt.Errorf("the daemon is stopping: %w", context.Canceled)

// events hands each event to all clients that listen. The zero value is ready.
type events struct {
	mu      sync.Mutex
	clients map[*eventClient]bool
	closed  bool
}

type eventClient struct {
	queue chan *cri.ContainerEventResponse
	ended chan struct{} // closed when no more will come
	err   error         // why; valid once ended is closed
}

// GetContainerEvents streams what happens from now on. Each event says how the pod and its containers are then.
func (s *Server) GetContainerEvents(_ *cri.GetEventsRequest, stream cri.RuntimeService_GetContainerEventsServer) error {
	client, err := s.events.subscribe()
	if err != nil {
		return err
	}
	defer s.events.unsubscribe(client, nil)
	// What has been queued is sent before the end is told: select would choose at random.
	for {
		select {
		case e := <-client.queue:
			if err := stream.Send(e); err != nil {
				return fmt.Errorf("events: %w", err)
			}
			continue
		default:
		}
		select {
		case e := <-client.queue:
			if err := stream.Send(e); err != nil {
				return fmt.Errorf("events: %w", err)
			}
		case <-client.ended:
			return client.err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (es *events) subscribe() (*eventClient, error) {
	es.mu.Lock()
	defer es.mu.Unlock()
	if es.closed {
		return nil, errShutdown
	}
	if es.clients == nil {
		es.clients = map[*eventClient]bool{}
	}
	c := &eventClient{queue: make(chan *cri.ContainerEventResponse, eventBuffer), ended: make(chan struct{})}
	es.clients[c] = true
	return c, nil
}

func (es *events) unsubscribe(c *eventClient, why error) {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.dropLocked(c, why)
}

func (es *events) dropLocked(c *eventClient, why error) {
	if es.clients[c] {
		delete(es.clients, c)
		c.err = why
		close(c.ended)
	}
}

func (es *events) heard() bool {
	es.mu.Lock()
	defer es.mu.Unlock()
	return len(es.clients) > 0
}

// send never blocks: a container's end must not wait for a client.
func (es *events) send(e *cri.ContainerEventResponse) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for c := range es.clients {
		select {
		case c.queue <- e:
		default:
			es.dropLocked(c, errSlow)
		}
	}
}

func (es *events) close() {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.closed = true
	for c := range es.clients {
		es.dropLocked(c, errShutdown)
	}
}

// tell reports what happened to a container.
func (s *Server) tell(kind cri.ContainerEventType, c *container) {
	if c.pod != nil {
		s.tellOf(kind, string(c.id), c.pod)
	}
}

// tellPod reports what happened to a pod in the words of containers, whose ID is then the pod's: the API has no other,
// and containerd and CRI-O do so for the pause containers that they have.
func (s *Server) tellPod(kind cri.ContainerEventType, p *pod) { s.tellOf(kind, string(p.id), p) }

// tellOf reports an event of a pod or of one of its containers, if anybody listens.
func (s *Server) tellOf(kind cri.ContainerEventType, id string, p *pod) {
	if !s.events.heard() {
		return
	}
	s.events.send(&cri.ContainerEventResponse{
		ContainerId: id, ContainerEventType: kind, CreatedAt: time.Now().UnixNano(),
		PodSandboxStatus: p.status(), ContainersStatuses: s.statusesOf(p),
	})
}
