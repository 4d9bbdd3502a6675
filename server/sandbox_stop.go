package server

import (
	"context"
	"errors"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// StopPodSandbox ends the pod's containers at once and frees its network. It may be repeated, and succeeds for a pod
// that is not there. What can't be freed now is freed in the background.
func (s *Server) StopPodSandbox(ctx context.Context, req *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	p, err := s.pods.find(req.GetPodSandboxId())
	if errors.Is(err, store.ErrNotFound) {
		return &cri.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pod: %w", err)
	}
	if err := s.stopPod(p).wait(ctx, &p.progress); err != nil {
		return nil, fmt.Errorf("pod %s: stop: %w", p.id, err)
	}
	return &cri.StopPodSandboxResponse{}, nil
}

// stopPod stops a pod or joins the stop that is under way.
func (s *Server) stopPod(p *pod) *flight {
	return p.stopping.start(s, func(ctx context.Context) error {
		<-p.made.done
		if err := p.turn.take(ctx); err != nil {
			return err
		}
		defer p.turn.give()
		return s.stopPodInTurn(ctx, p)
	})
}

func (s *Server) stopPodInTurn(ctx context.Context, p *pod) error {
	switch p.state() {
	case store.PodReady: // from here on no container is made or started
		if err := p.move(store.PodStopping, nil); err != nil {
			return err
		}
	case store.PodStopping:
	default:
		return nil
	}
	if err := s.eachContainer(ctx, p, s.endContainer); err != nil {
		s.pendPod(p, err)
		return err
	}
	if err := down(ctx, p, s.stoppedSteps()); err != nil {
		s.pendPod(p, err) // its processes are gone, so the client need not wait for the rest
		s.tellPod(cri.ContainerEventType_CONTAINER_STOPPED_EVENT, p)
		return nil
	}
	if err := p.move(store.PodNotReady, func(rec *store.Pod) { rec.Pending, rec.Timings = nil, p.took() }); err != nil {
		return err
	}
	s.tellPod(cri.ContainerEventType_CONTAINER_STOPPED_EVENT, p)
	return nil
}

// eachContainer does f to all containers of a pod at the same time.
func (s *Server) eachContainer(ctx context.Context, p *pod, f func(context.Context, *container) error) error {
	p.enter("containers")
	defer p.leave()
	all := s.containersOf(p)
	results := make(chan error, len(all))
	for _, c := range all {
		go func() {
			results <- guarded(ctx, func(ctx context.Context) error { return f(ctx, c) })
		}()
	}
	var errs []error
	for range all {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}
