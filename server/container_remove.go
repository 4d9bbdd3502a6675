package server

import (
	"context"
	"errors"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// RemoveContainer kills the container if need be and removes it. It may be repeated, and succeeds for a container
// that is not there. What can't be removed now is hidden, and removed in the background.
func (s *Server) RemoveContainer(ctx context.Context, req *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	c, err := s.containers.find(req.GetContainerId())
	if errors.Is(err, store.ErrNotFound) {
		return &cri.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("container: %w", err)
	}
	if err := s.removeContainer(c).wait(ctx, &c.progress); err != nil {
		return nil, fmt.Errorf("container %s: remove: %w", c.id, err)
	}
	return &cri.RemoveContainerResponse{}, nil
}

// removeContainer removes a container or joins the removal that is under way.
func (s *Server) removeContainer(c *container) *flight {
	return c.removing.start(s, func(ctx context.Context) error {
		if err := s.endContainer(ctx, c); err != nil {
			return err
		}
		if err := c.turn.take(ctx); err != nil {
			return err
		}
		defer c.turn.give()
		return s.removeContainerInTurn(ctx, c)
	})
}

func (s *Server) removeContainerInTurn(ctx context.Context, c *container) error {
	if _, there := s.containers.get(c.id); !there {
		return nil
	}
	if c.state() != store.ContainerRemoving {
		if err := c.move(store.ContainerRemoving, nil); err != nil {
			return err
		}
	}
	s.containers.releaseName(c.name, c)
	if err := down(ctx, c, s.containerSteps(containerPlan{})); err != nil {
		s.pendContainer(c, err)
		return nil
	}
	s.containers.remove(c.id, c.name, c)
	s.meter.Forget(string(c.id))
	s.tell(cri.ContainerEventType_CONTAINER_DELETED_EVENT, c)
	return nil
}
