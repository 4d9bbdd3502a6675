package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/store"
)

func TestCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{nil, codes.OK, ""},
		{fmt.Errorf("pod x: %w", store.ErrNotFound), codes.NotFound, "pod x: not found"},
		{fmt.Errorf("a: %w", fmt.Errorf("%w: container %w", store.ErrInvalid, store.ErrNotFound)), codes.InvalidArgument, "invalid"},
		{fmt.Errorf("image: %w", spec.ErrInvalid), codes.InvalidArgument, ""},
		{fmt.Errorf("pull: %w", image.ErrPolicy), codes.Unknown, "SignatureValidationFailed: "},
		{fmt.Errorf("pull: %w", image.ErrUnavailable), codes.Unknown, "RegistryUnavailable: "},
		{fmt.Errorf("step: %w", context.DeadlineExceeded), codes.DeadlineExceeded, ""},
		{fmt.Errorf("write: %w", unix.ENOSPC), codes.ResourceExhausted, ""},
		{status.Error(codes.Unimplemented, "later"), codes.Unimplemented, "later"},
		{errors.New("surprise"), codes.Internal, "surprise"},
	} {
		got := status.Convert(toStatus(tt.err))
		if got.Code() != tt.code || !strings.Contains(got.Message(), tt.text) {
			t.Errorf("%v: %v %q", tt.err, got.Code(), got.Message())
		}
		// The kubelet's client drops this code, and the kubelet looks at the beginning of the rest.
		if got.Code() == codes.Unknown && !strings.HasPrefix(got.Message(), tt.text) {
			t.Errorf("%v: %q does not begin with %q", tt.err, got.Message(), tt.text)
		}
	}
}

func TestPanicEndsOneCall(t *testing.T) {
	var log bytes.Buffer
	c := calls{slog.New(slog.NewTextHandler(&log, nil))}
	info := &grpc.UnaryServerInfo{FullMethod: "/runtime.v1.RuntimeService/StopContainer"}
	_, err := c.unary(t.Context(), &cri.StopContainerRequest{ContainerId: "abc"}, info, func(context.Context, any) (any, error) {
		panic("as asked")
	})
	if status.Code(err) != codes.Internal {
		t.Errorf("%v", err)
	}
	for _, want := range []string{"stack=", "rpc=StopContainer", "container=abc", "as asked"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %q: %s", want, log.String())
		}
	}
}

func TestLogLevels(t *testing.T) {
	for name, want := range map[string]bool{
		"ListContainers": true, "ContainerStatus": true, "ExecSync": true, "ImageFsInfo": true, "RuntimeConfig": true,
		"UpdateRuntimeConfig": false, "RunPodSandbox": false, "PullImage": false, "StopContainer": false,
	} {
		if looks(name) != want {
			t.Errorf("looks(%s) = %v", name, !want)
		}
	}
}

// The daemon's socket, as a client sees it: codes and texts arrive, a panic ends one call, and large answers pass.
func TestOverSocket(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(Options(slog.New(slog.DiscardHandler))...)
	cri.RegisterRuntimeServiceServer(g, oddities{})
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)))
	if err != nil {
		t.Fatal(err)
	}
	client := cri.NewRuntimeServiceClient(conn)
	for range 2 { // the daemon stays up
		if _, err := client.StopContainer(t.Context(), &cri.StopContainerRequest{}); status.Code(err) != codes.Internal {
			t.Errorf("panic: %v", err)
		}
	}
	if _, err := client.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{}); status.Code(err) != codes.NotFound {
		t.Errorf("not found: %v", err)
	}
	if _, err := client.CheckpointContainer(t.Context(), &cri.CheckpointContainerRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("not there yet: %v", err)
	}
	events, err := client.GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err == nil {
		_, err = events.Recv()
	}
	if status.Code(err) != codes.Internal {
		t.Errorf("panic of a stream: %v", err)
	}
	if out, err := client.ExecSync(t.Context(), &cri.ExecSyncRequest{}); err != nil || len(out.Stdout) != 16<<20-1<<10 {
		t.Errorf("large answer: %d bytes, %v", len(out.GetStdout()), err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	g.GracefulStop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// oddities is a runtime service with what handlers should not do.
type oddities struct {
	cri.UnimplementedRuntimeServiceServer
}

func (oddities) StopContainer(context.Context, *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	panic("as asked")
}

func (oddities) GetContainerEvents(*cri.GetEventsRequest, cri.RuntimeService_GetContainerEventsServer) error {
	panic("as asked")
}

func (oddities) ContainerStatus(context.Context, *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	return nil, fmt.Errorf("container x: %w", store.ErrNotFound)
}

func (oddities) ExecSync(context.Context, *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	return &cri.ExecSyncResponse{Stdout: make([]byte, 16<<20-1<<10)}, nil
}
