package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListPodSandbox takes no lock and makes no message: it returns those made when the records were written.
func (s *Server) ListPodSandbox(_ context.Context, req *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: s.selectPods(req.GetFilter())}, nil
}

func (s *Server) selectPods(f *cri.PodSandboxFilter) []*cri.PodSandbox {
	all := s.pods.all()
	items := make([]*cri.PodSandbox, 0, len(all))
	for _, p := range all {
		if !p.visible() {
			continue
		}
		v := p.view.Load()
		if hasPrefix(v.Id, f.GetId()) && (f.GetState() == nil || f.GetState().GetState() == v.State) &&
			matches(v.Labels, f.GetLabelSelector()) {
			items = append(items, v)
		}
	}
	return items
}
