// Package rpc is what all CRI calls have in common: error codes, log lines, limits, and the end of a panic.
package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessageBytes bounds a request and an answer, as in the kubelet's own client.
const maxMessageBytes = 16 << 20

// slowTime is how long a call may take before its log line is a warning.
const slowTime = 10 * time.Second

// patient calls take what they take: a download, a command, the grace that a container was given.
var patient = map[string]bool{"PullImage": true, "ExecSync": true, "StopContainer": true}

// Options are for the gRPC server that CRI services are registered with.
func Options(log *slog.Logger) []grpc.ServerOption {
	c := calls{log}
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.UnaryInterceptor(c.unary),
		grpc.StreamInterceptor(c.stream),
	}
}

type calls struct{ log *slog.Logger }

func (c calls) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	began := time.Now()
	defer func() {
		if p := recover(); p != nil {
			answer, err = nil, c.panicked(info.FullMethod, p)
		}
		err = toStatus(err)
		c.done(ctx, info.FullMethod, began, subject(req), err)
	}()
	return handle(ctx, req)
}

func (c calls) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	began := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = c.panicked(info.FullMethod, p)
		}
		err = toStatus(err)
		c.done(s.Context(), info.FullMethod, began, slog.Attr{}, err)
	}()
	return handle(srv, s)
}

// panicked ends one call and not the daemon.
func (c calls) panicked(method string, p any) error {
	c.log.Error("call panicked", "rpc", path.Base(method), "panic", p, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, fmt.Sprintf("internal error in %s: %v", path.Base(method), p))
}

// done writes the one log line of a call: what changes the node at level info, what only looks at level debug.
func (c calls) done(ctx context.Context, method string, began time.Time, subject slog.Attr, err error) {
	name, took := path.Base(method), time.Since(began)
	level := slog.LevelInfo
	switch {
	case err != nil && status.Code(err) != codes.Canceled:
		level = slog.LevelWarn
	case looks(name):
		level = slog.LevelDebug
	case took > slowTime && !patient[name]:
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{slog.String("rpc", name), slog.Duration("dur", took)}
	if subject.Key != "" {
		attrs = append(attrs, subject)
	}
	if err != nil {
		attrs = append(attrs, slog.String("code", status.Code(err).String()), slog.String("err", status.Convert(err).Message()))
	}
	c.log.LogAttrs(ctx, level, "call", attrs...)
}

// looks tells whether a call changes nothing. Probes come as ExecSync, every second from each pod.
func looks(name string) bool {
	for _, part := range []string{"List", "Status", "Stats", "Info", "Version", "Events", "Config", "ExecSync", "Metric"} {
		if strings.Contains(name, part) {
			return name != "UpdateRuntimeConfig"
		}
	}
	return false
}

// subject names what a request is about.
func subject(req any) slog.Attr {
	switch r := req.(type) {
	case interface{ GetContainerId() string }:
		return slog.String("container", r.GetContainerId())
	case interface{ GetPodSandboxId() string }:
		return slog.String("pod", r.GetPodSandboxId())
	case interface{ GetImage() *cri.ImageSpec }:
		return slog.String("image", r.GetImage().GetImage())
	}
	return slog.Attr{}
}
