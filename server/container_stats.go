package server

import (
	"context"
	"fmt"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/stats"
	"github.com/orlop/orlop/server/store"
)

// ContainerStats reads what a container uses. One that has ended uses disk space only.
func (s *Server) ContainerStats(ctx context.Context, req *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	c, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatsResponse{Stats: s.meter.Container(ctx, s.measured(c))}, nil
}

// ListContainerStats reads what all running containers use.
func (s *Server) ListContainerStats(ctx context.Context, req *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	resp := &cri.ListContainerStatsResponse{}
	for _, c := range s.containers.all() {
		v := c.view.Load()
		if c.state() != store.ContainerRunning || !hasPrefix(v.Id, f.GetId()) ||
			!hasPrefix(v.PodSandboxId, f.GetPodSandboxId()) || !matches(v.Labels, f.GetLabelSelector()) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("stats: %w", err)
		}
		resp.Stats = append(resp.Stats, s.meter.Container(ctx, s.measured(c)))
	}
	return resp, nil
}

// measured says what to measure of a container.
func (s *Server) measured(c *container) stats.Container {
	v := c.view.Load()
	m := stats.Container{Attributes: &cri.ContainerAttributes{
		Id: v.Id, Metadata: v.Metadata, Labels: v.Labels, Annotations: v.Annotations,
	}}
	if c.alive() {
		m.CgroupDir = s.cgroupDir(c.rec.Load().CgroupsPath)
	}
	return m
}

// cgroupDir was checked when the path was made; "" only for a record of a version that named cgroups otherwise.
func (s *Server) cgroupDir(path string) string {
	dir, err := s.Cgroups.Dir(path)
	if err != nil {
		s.log.Debug("cgroup has no directory", "cgroup", path, "err", err)
	}
	return dir
}
