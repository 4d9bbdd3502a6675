package server

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// errGivenUp is why a create that is under way is cancelled.
var errGivenUp = fmt.Errorf("%w: its pod is being stopped", store.ErrState)

// CreateContainer may be repeated: the kubelet does so after a timeout, and gets the same container.
func (s *Server) CreateContainer(ctx context.Context, req *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	rec, want, err := s.parseContainer(req) // all validation; req is not read below this line
	if err != nil {
		return nil, err
	}
	made, err := s.joinContainer(ctx, rec, want)
	if err != nil {
		return nil, fmt.Errorf("container %s of pod %s: %w", rec.Config.GetMetadata().GetName(), rec.Pod, err)
	}
	return &cri.CreateContainerResponse{ContainerId: string(made.id)}, nil
}

// joinContainer makes a container on the daemon's context. Where the same is being made, it waits for that one; where
// it has been made, it returns it.
func (s *Server) joinContainer(ctx context.Context, rec *store.Container, want containerPlan) (*container, error) {
	fresh := s.newContainer(rec, want.pod, newFlight())
	create, cancel := context.WithCancelCause(s.ctx)
	fresh.cancel = func() { cancel(errGivenUp) }
	c, first := s.containers.claim(fresh.id, fresh.name, fresh)
	if first {
		s.fly(c.made, func(context.Context) error {
			defer cancel(nil)
			return s.makeContainer(create, c, want)
		})
	} else {
		cancel(nil)
		if err := c.sameContainer(rec); err != nil {
			return nil, err
		}
	}
	if err := c.made.wait(ctx, &c.progress); err != nil {
		return nil, err
	}
	if state := c.state(); state == store.ContainerExited || state == store.ContainerRemoving {
		return nil, fmt.Errorf("%w: container %s of this name and attempt has %s; remove it or use another attempt", store.ErrExists, c.id, state)
	}
	return c, nil
}

// sameContainer tells whether a request asks for the container that is there.
func (c *container) sameContainer(rec *store.Container) error {
	if proto.Equal(c.rec.Load().Config, rec.Config) {
		return nil
	}
	return fmt.Errorf("%w: container %s has this name and attempt and another config; use another attempt", store.ErrExists, c.id)
}

func (s *Server) makeContainer(ctx context.Context, c *container, want containerPlan) error {
	if err := c.turn.take(ctx); err != nil {
		return err
	}
	defer c.turn.give()
	err := up(ctx, c, s.containerSteps(want))
	if err == nil {
		s.tell(cri.ContainerEventType_CONTAINER_CREATED_EVENT, c)
		return nil
	}
	left := leftOver(err)
	if errors.Is(context.Cause(ctx), errGivenUp) {
		err = fmt.Errorf("%w: %w", err, errGivenUp)
	}
	if left == nil {
		s.containers.remove(c.id, c.name, c)
		return err
	}
	s.containers.releaseName(c.name, c) // what is left of it must not keep a new one from being made
	if moveErr := c.move(store.ContainerRemoving, nil); moveErr != nil {
		left = errors.Join(left, moveErr)
	}
	s.pendContainer(c, left)
	return err
}
