package main

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/image"
)

// The service orlop.v1.Admin is what our own commands need of the daemon and CRI does not have. It is on the CRI's
// socket, whose users own the node anyway. `orlop image load` goes through it, and not to the store itself: the
// daemon keeps its list of images in memory and holds the store's lock, so whoever changes the store beside it would
// have to stop it first. The messages are well-known types, so there is nothing to generate.
const adminName = "orlop.v1.Admin"

// adminMethods is [admin]; gRPC checks what is registered against it.
type adminMethods interface {
	loadImage(ctx context.Context, req *structpb.Struct) (*wrapperspb.StringValue, error)
	monitorStatus(ctx context.Context, req *emptypb.Empty) (*structpb.Struct, error)
}

var adminService = grpc.ServiceDesc{
	ServiceName: adminName,
	HandlerType: (*adminMethods)(nil),
	Methods: []grpc.MethodDesc{
		unaryMethod("LoadImage", adminMethods.loadImage),
		unaryMethod("MonitorStatus", adminMethods.monitorStatus),
	},
}

// unaryMethod describes a method as generated code does.
func unaryMethod[Req, Resp any](name string, call func(adminMethods, context.Context, *Req) (*Resp, error)) grpc.MethodDesc {
	handler := func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		req := new(Req)
		if err := decode(req); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, req any) (any, error) { return call(srv.(adminMethods), ctx, req.(*Req)) }
		if interceptor == nil {
			return handle(ctx, req)
		}
		return interceptor(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + adminName + "/" + name}, handle)
	}
	return grpc.MethodDesc{MethodName: name, Handler: handler}
}

type admin struct {
	images  *image.Service
	monitor *conmon.Client
}

// loadImage takes {path, name} and answers the image's ID.
func (a admin) loadImage(ctx context.Context, req *structpb.Struct) (*wrapperspb.StringValue, error) {
	id, err := a.images.Load(ctx, req.Fields["path"].GetStringValue(), req.Fields["name"].GetStringValue())
	return wrapperspb.String(id), err
}

// monitorStatus asks the monitor and tells how long its answer took, in milliseconds, and how many containers it has.
func (a admin) monitorStatus(ctx context.Context, _ *emptypb.Empty) (*structpb.Struct, error) {
	began := time.Now()
	list, err := a.monitor.List(ctx)
	if err != nil {
		return nil, err
	}
	running := 0
	for _, c := range list {
		if c.Exit == nil {
			running++
		}
	}
	return structpb.NewStruct(map[string]any{
		"answeredMillis": float64(time.Since(began).Microseconds()) / 1000,
		"containers":     len(list),
		"running":        running,
	})
}
