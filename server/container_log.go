package server

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// ReopenContainerLog is called after the log file was renamed. It takes no turn: a container that is being stopped
// still writes its log.
func (s *Server) ReopenContainerLog(ctx context.Context, req *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	c, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if state := c.state(); state != store.ContainerRunning {
		return nil, fmt.Errorf("container %s: reopen log: %w: it is %s and not running", c.id, store.ErrState, state)
	}
	_, err = retry(ctx, func() (any, error) { return nil, s.monitor.ReopenLog(ctx, string(c.id)) })
	if err != nil {
		return nil, fmt.Errorf("container %s: reopen log: %w", c.id, err)
	}
	return &cri.ReopenContainerLogResponse{}, nil
}
