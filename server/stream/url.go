package stream

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/url"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// Exec answers the URL at which the command runs.
func (s *Server) Exec(_ context.Context, req *cri.ExecRequest) (*cri.ExecResponse, error) {
	if len(req.GetCmd()) == 0 {
		return nil, fmt.Errorf("%w: cmd is empty: name a program", store.ErrInvalid)
	}
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	id, err := s.subjects.RunningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	kept := proto.CloneOf(req)
	kept.ContainerId = id
	return &cri.ExecResponse{Url: s.url("exec", kept)}, nil
}

// Attach answers the URL at which the container's standard streams are.
func (s *Server) Attach(_ context.Context, req *cri.AttachRequest) (*cri.AttachResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	id, err := s.subjects.RunningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	kept := proto.CloneOf(req)
	kept.ContainerId = id
	return &cri.AttachResponse{Url: s.url("attach", kept)}, nil
}

// PortForward answers the URL through which ports of the pod can be reached. An SPDY client names the ports there; a
// WebSocket client gets those of the request.
func (s *Server) PortForward(_ context.Context, req *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	for _, port := range req.GetPort() {
		if err := checkPort(port); err != nil {
			return nil, err
		}
	}
	if _, err := s.subjects.PodNetNS(req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &cri.PortForwardResponse{Url: s.url("portforward", req)}, nil
}

func checkPort(port int32) error {
	if port < 1 || port > math.MaxUint16 {
		return fmt.Errorf("%w: port %d is not between 1 and 65535", store.ErrInvalid, port)
	}
	return nil
}

// checkStreams holds what CRI says of the flags of ExecRequest and AttachRequest.
func checkStreams(req interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}) error {
	if req.GetTty() && req.GetStderr() {
		return fmt.Errorf("%w: stderr with tty: a terminal has one output; leave out stderr", store.ErrInvalid)
	}
	if !req.GetStdin() && !req.GetStdout() && !req.GetStderr() {
		return fmt.Errorf("%w: no stream: set one of stdin, stdout and stderr", store.ErrInvalid)
	}
	return nil
}

// url keeps a request for whoever comes with its token.
func (s *Server) url(kind string, req proto.Message) string {
	u := url.URL{Scheme: "http", Host: s.host(), Path: "/" + kind + "/" + s.tokens.put(req)}
	return u.String()
}

// host is where clients connect to. Who listens on all addresses can be reached on loopback.
func (s *Server) host() string {
	addr := s.listener.Addr().(*net.TCPAddr)
	if addr.IP.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", fmt.Sprint(addr.Port))
	}
	return addr.String()
}
