package server

import (
	"context"
	"fmt"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// Streams is [stream.Server].
type Streams interface {
	ExecSync(ctx context.Context, req *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error)
	Exec(ctx context.Context, req *cri.ExecRequest) (*cri.ExecResponse, error)
	Attach(ctx context.Context, req *cri.AttachRequest) (*cri.AttachResponse, error)
	PortForward(ctx context.Context, req *cri.PortForwardRequest) (*cri.PortForwardResponse, error)
	Close() error
}

// ExecSync is in package stream.
func (s *Server) ExecSync(ctx context.Context, req *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	return s.streams.ExecSync(ctx, req)
}

// Exec is in package stream.
func (s *Server) Exec(ctx context.Context, req *cri.ExecRequest) (*cri.ExecResponse, error) {
	return s.streams.Exec(ctx, req)
}

// Attach is in package stream.
func (s *Server) Attach(ctx context.Context, req *cri.AttachRequest) (*cri.AttachResponse, error) {
	return s.streams.Attach(ctx, req)
}

// PortForward is in package stream.
func (s *Server) PortForward(ctx context.Context, req *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	return s.streams.PortForward(ctx, req)
}

// RunningContainer implements [stream.Subjects].
func (s *Server) RunningContainer(id string) (string, error) {
	c, err := s.findContainer(id)
	if err != nil {
		return "", err
	}
	if state := c.state(); state != store.ContainerRunning {
		return "", fmt.Errorf("container %s: %w: it is %s and not running", c.id, store.ErrState, state)
	}
	return string(c.id), nil
}

// PodNetNS implements [stream.Subjects].
func (s *Server) PodNetNS(id string) (string, error) {
	p, err := s.findPod(id)
	if err != nil {
		return "", err
	}
	if err := p.ready(); err != nil {
		return "", err
	}
	return p.namespacePaths()[rspec.NetworkNamespace], nil
}

// ImageInUse tells whether a container was made from an image or has it mounted, also one that is being made or
// removed.
func (s *Server) ImageInUse(id string) bool {
	for _, c := range s.containers.all() {
		rec := c.rec.Load()
		if rec.ImageID == id {
			return true
		}
		for _, mounted := range rec.MountImages {
			if mounted == id {
				return true
			}
		}
	}
	return false
}
