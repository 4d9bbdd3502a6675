package server

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// UpdatePodSandboxResources keeps on record what the pod as a whole may use. The limits themselves are set by the
// kubelet, whose cgroup the pod's is; nothing here depends on them yet.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, req *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	p, err := s.findPod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := p.turn.take(ctx); err != nil {
		return nil, fmt.Errorf("pod %s: update: %w", p.id, err)
	}
	defer p.turn.give()
	err = p.write(func(rec *store.Pod) {
		if r := req.GetResources(); r != nil {
			rec.Resources = &store.Resources{CRI: r}
		}
		if r := req.GetOverhead(); r != nil {
			rec.Overhead = &store.Resources{CRI: r}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("pod %s: update: %w", p.id, err)
	}
	return &cri.UpdatePodSandboxResourcesResponse{}, nil
}
