package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessageBytes bounds an answer, as in the kubelet's own client.
const maxMessageBytes = 16 << 20

// client is a command's connection to the daemon of its configuration.
type client struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
	conn   *grpc.ClientConn
}

// withClient calls f with a connection.
func (f *configFlags) withClient(use func(c *client) error) error {
	cfg, err := f.load()
	if err != nil {
		return fmt.Errorf("configuration:\n%w", err)
	}
	conn, err := grpc.NewClient("unix://"+cfg.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithUnaryInterceptor(plainErrors(cfg.Socket)))
	if err != nil {
		return fmt.Errorf("socket %s: %w", cfg.Socket, err)
	}
	defer conn.Close()
	return use(&client{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), conn})
}

// callError is an error of the daemon's, in its words alone.
type callError struct{ *status.Status }

func (e callError) Error() string              { return e.Message() }
func (e callError) GRPCStatus() *status.Status { return e.Status }

// plainErrors takes gRPC's own words off an error: they help nobody at a terminal.
func plainErrors(socket string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker,
		opts ...grpc.CallOption) error {
		err := invoke(ctx, method, req, reply, cc, opts...)
		st, ok := status.FromError(err)
		switch {
		case err == nil:
			return nil
		case ok && st.Code() == codes.Unavailable && cc.GetState() != connectivity.Ready:
			return fmt.Errorf("no daemon answers on %s; is `orlop serve` running with this configuration?", socket)
		case ok:
			return callError{st}
		}
		return err
	}
}
