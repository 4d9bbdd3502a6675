package server

import (
	"context"
	"fmt"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/stats"
	"github.com/orlop/orlop/server/store"
)

// PodSandboxStats reads what a pod and its running containers use.
func (s *Server) PodSandboxStats(ctx context.Context, req *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	p, err := s.findPod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: s.meter.Pod(ctx, s.measuredPod(p))}, nil
}

// ListPodSandboxStats reads what all ready pods use.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	resp := &cri.ListPodSandboxStatsResponse{}
	for _, p := range s.pods.all() {
		v := p.view.Load()
		if p.state() != store.PodReady || !hasPrefix(v.Id, f.GetId()) || !matches(v.Labels, f.GetLabelSelector()) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("stats: %w", err)
		}
		resp.Stats = append(resp.Stats, s.meter.Pod(ctx, s.measuredPod(p)))
	}
	return resp, nil
}

// measuredPod says what to measure of a pod.
func (s *Server) measuredPod(p *pod) stats.Pod {
	v := p.view.Load()
	m := stats.Pod{Attributes: &cri.PodSandboxAttributes{
		Id: v.Id, Metadata: v.Metadata, Labels: v.Labels, Annotations: v.Annotations,
	}}
	if p.state() == store.PodReady {
		m.CgroupDir = s.cgroupDir(p.rec.Load().CgroupParent)
		m.NetNS = p.namespacePaths()[rspec.NetworkNamespace]
	}
	for _, c := range s.containersOf(p) {
		if c.state() == store.ContainerRunning {
			m.Containers = append(m.Containers, s.measured(c))
		}
	}
	return m
}
