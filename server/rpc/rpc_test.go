package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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
