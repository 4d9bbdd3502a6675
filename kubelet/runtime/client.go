package runtime

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessageBytes is what a list of some thousand containers needs; kubelet's client accepts as much.
const maxMessageBytes = 16 << 20

// Client is a connection to a runtime and to its image service, which may be another one.
type Client struct {
	cri.RuntimeServiceClient
	Images cri.ImageServiceClient
	conns  []*grpc.ClientConn
	watch  grpc.UnaryClientInterceptor
}

// Dial prepares connections to unix sockets ("unix:///run/orlop/orlop.sock"); it does not wait until somebody listens.
// An imageEndpoint of "" is endpoint. timeout limits each call that has no time limit of its own, but not streams,
// pulls and commands, which end when their caller gives up. watch sees each call, for metrics.
func Dial(endpoint, imageEndpoint string, timeout time.Duration, watch grpc.UnaryClientInterceptor) (*Client, error) {
	c := &Client{watch: watch}
	conn, err := c.dial(endpoint, timeout)
	if err != nil {
		return nil, err
	}
	c.RuntimeServiceClient, c.Images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	if imageEndpoint != "" && imageEndpoint != endpoint {
		if conn, err = c.dial(imageEndpoint, timeout); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.Images = cri.NewImageServiceClient(conn)
	}
	return c, nil
}

func (c *Client) dial(endpoint string, timeout time.Duration) (*grpc.ClientConn, error) {
	if !strings.HasPrefix(endpoint, "unix:///") {
		return nil, fmt.Errorf("runtime endpoint %q: not the address of a unix socket; write unix:///path/to/socket", endpoint)
	}
	conn, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"), // servers refuse a path as the authority
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithConnectParams(connectQuickly),
		grpc.WithChainUnaryInterceptor(limit(timeout), c.watch))
	if err != nil {
		return nil, fmt.Errorf("runtime endpoint %q: %w", endpoint, err)
	}
	c.conns = append(c.conns, conn)
	return conn, nil
}

// connectQuickly: a runtime that is restarted is away for a second, and its socket is local, so trying costs nothing.
var connectQuickly = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
	MinConnectTimeout: time.Second,
}

// unlimited are calls that take as long as what they do: a pull, or a hook's command, whose time its caller limits.
var unlimited = map[string]bool{
	cri.ImageService_PullImage_FullMethodName:  true,
	cri.RuntimeService_ExecSync_FullMethodName: true,
}

// limit gives each call a time limit if it has none.
func limit(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if _, has := ctx.Deadline(); !has && timeout > 0 && !unlimited[method] {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		return call(ctx, method, req, reply, conn, opts...)
	}
}

// Close ends the connections and all calls on them.
func (c *Client) Close() error {
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}
