package server

import (
	"context"
	"errors"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// RemovePodSandbox stops the pod if need be and removes it with its containers. It may be repeated, and succeeds for
// a pod that is not there. What can't be removed now is hidden, and removed in the background.
func (s *Server) RemovePodSandbox(ctx context.Context, req *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	p, err := s.pods.find(req.GetPodSandboxId())
	if errors.Is(err, store.ErrNotFound) {
		return &cri.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pod: %w", err)
	}
	if err := s.removePod(p).wait(ctx, &p.progress); err != nil {
		return nil, fmt.Errorf("pod %s: remove: %w", p.id, err)
	}
	return &cri.RemovePodSandboxResponse{}, nil
}

// removePod removes a pod or joins the removal that is under way.
func (s *Server) removePod(p *pod) *flight {
	return p.removing.start(s, func(ctx context.Context) error {
		if err := s.stopPod(p).wait(ctx, &p.progress); err != nil {
			return err
		}
		if err := p.turn.take(ctx); err != nil {
			return err
		}
		defer p.turn.give()
		return s.removePodInTurn(ctx, p)
	})
}

func (s *Server) removePodInTurn(ctx context.Context, p *pod) error {
	if _, there := s.pods.get(p.id); !there {
		return nil
	}
	if p.state() != store.PodRemoving {
		if err := p.move(store.PodRemoving, nil); err != nil {
			return err
		}
	}
	s.pods.releaseName(p.name, p)
	err := s.eachContainer(ctx, p, func(ctx context.Context, c *container) error {
		return s.removeContainer(c).wait(ctx, &c.progress)
	})
	if err != nil {
		s.pendPod(p, err)
		return err
	}
	if len(s.containersOf(p)) > 0 {
		s.pendPod(p, errors.New("a container of it is not removed yet"))
		return nil
	}
	if err := down(ctx, p, s.podSteps()); err != nil {
		s.pendPod(p, err)
		return nil
	}
	s.pods.remove(p.id, p.name, p)
	s.meter.Forget(string(p.id))
	s.tellPod(cri.ContainerEventType_CONTAINER_DELETED_EVENT, p)
	s.log.Info("pod removed", "pod", p.id, "name", podTitle(p.rec.Load()))
	return nil
}
