package rpc

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/cni"
	"github.com/orlop/orlop/server/label"
	"github.com/orlop/orlop/server/podfiles"
	"github.com/orlop/orlop/server/seccomp"
	"github.com/orlop/orlop/server/store"
	"github.com/orlop/orlop/server/user"
	"github.com/orlop/orlop/server/volume"
)

// codeOf is the only place where Go errors become gRPC codes; the first match counts. What clients did wrong comes
// first: an error may also wrap what that led to.
var codeOf = []struct {
	err  error
	code codes.Code
}{
	{store.ErrInvalid, codes.InvalidArgument},
	{spec.ErrInvalid, codes.InvalidArgument},
	{cgroup.ErrInvalid, codes.InvalidArgument},
	{ns.ErrInvalid, codes.InvalidArgument},
	{cni.ErrInvalid, codes.InvalidArgument},
	{cni.ErrNotReady, codes.Unavailable},
	{user.ErrInvalid, codes.InvalidArgument},
	{volume.ErrInvalid, codes.InvalidArgument},
	{podfiles.ErrInvalid, codes.InvalidArgument},
	{label.ErrInvalid, codes.InvalidArgument},
	{seccomp.ErrInvalid, codes.InvalidArgument},
	{image.ErrInvalidName, codes.InvalidArgument},

	{image.ErrDenied, codes.PermissionDenied},
	{image.ErrPolicy, codes.Unknown}, // see wordOf
	{image.ErrInvalidImage, codes.FailedPrecondition},
	{image.ErrInUse, codes.FailedPrecondition},
	{image.ErrTooLarge, codes.ResourceExhausted},
	{image.ErrUnavailable, codes.Unknown}, // see wordOf
	{image.ErrNotFound, codes.NotFound},

	{store.ErrState, codes.FailedPrecondition},
	{store.ErrExists, codes.AlreadyExists},
	{store.ErrNotFound, codes.NotFound},

	{conmon.ErrNotRunning, codes.FailedPrecondition},
	{conmon.ErrNotFound, codes.NotFound},
	{conmon.ErrTimeout, codes.DeadlineExceeded},

	{unix.ENOSPC, codes.ResourceExhausted},
	{unix.EDQUOT, codes.ResourceExhausted},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{conmon.ErrUnavailable, codes.Unavailable},
}

// wordOf are words that the kubelet looks for at the beginning of a pull's error (k8s.io/cri-api/pkg/errors), to give
// pods the reason. It finds them with the code Unknown only: with any other, its client (k8s.io/cri-client, PullImage)
// puts the code's name before the text.
var wordOf = []struct{ err, word error }{
	{image.ErrPolicy, crierrors.ErrSignatureValidationFailed},
	{image.ErrUnavailable, crierrors.ErrRegistryUnavailable},
}

func toStatus(err error) error {
	if err == nil {
		return nil
	}
	var own interface{ GRPCStatus() *status.Status }
	if errors.As(err, &own) {
		return err
	}
	text := err.Error()
	for _, w := range wordOf {
		if errors.Is(err, w.err) {
			text = w.word.Error() + ": " + text
		}
	}
	for _, c := range codeOf {
		if errors.Is(err, c.err) {
			return status.Error(c.code, text)
		}
	}
	return status.Error(codes.Internal, text)
}
