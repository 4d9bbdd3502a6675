package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListContainers takes no lock and makes no message: it returns those made when the records were written.
func (s *Server) ListContainers(_ context.Context, req *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: s.selectContainers(req.GetFilter())}, nil
}

func (s *Server) selectContainers(f *cri.ContainerFilter) []*cri.Container {
	all := s.containers.all()
	items := make([]*cri.Container, 0, len(all))
	for _, c := range all {
		if !c.visible() {
			continue
		}
		v := c.view.Load()
		if hasPrefix(v.Id, f.GetId()) && hasPrefix(v.PodSandboxId, f.GetPodSandboxId()) &&
			(f.GetState() == nil || f.GetState().GetState() == v.State) && matches(v.Labels, f.GetLabelSelector()) {
			items = append(items, v)
		}
	}
	return items
}
