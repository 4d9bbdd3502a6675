package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/orlop/orlop/oci/ns"
)

const (
	// dialTime is generous: it is loopback, but the pod may have filled the queue of its listener.
	dialTime = 10 * time.Second
	// halfTime is how long a pod may be silent after its client has said all. A client that is gone altogether
	// looks the same from here.
	halfTime = time.Minute
)

// forward connects a stream to a port of a pod. It returns when the pod has closed the connection.
func (s *Server) forward(ctx context.Context, podID string, port int32, client io.ReadWriteCloser) error {
	if err := checkPort(port); err != nil {
		return err
	}
	// Asked for each connection: the pod may have been stopped since the client came.
	netns, err := s.subjects.PodNetNS(podID)
	if err != nil {
		return err
	}
	c, err := dial(ctx, netns, port)
	if err != nil {
		return fmt.Errorf("pod %s: port %d: %w", podID, port, err)
	}
	pod := &podConn{TCPConn: c}
	defer pod.Close()
	defer context.AfterFunc(ctx, func() { pod.Close() })()
	s.spawn(func() {
		_, _ = io.Copy(pod.TCPConn, client) // the end of what the client says, in whatever way
		pod.endInput()
	})
	if _, err := io.Copy(client, pod); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Debug("forwarding ended", "pod", podID, "port", port, "err", err)
	}
	return nil
}

// podConn is a connection to a pod whose patience ends when its client has nothing more to say.
type podConn struct {
	*net.TCPConn
	ended atomic.Bool
}

func (c *podConn) endInput() {
	_ = c.CloseWrite()
	c.ended.Store(true)
	_ = c.SetReadDeadline(time.Now().Add(halfTime)) // for a read that is under way
}

func (c *podConn) Read(b []byte) (int, error) {
	if c.ended.Load() {
		_ = c.SetReadDeadline(time.Now().Add(halfTime))
	}
	return c.TCPConn.Read(b)
}

// WriteTo hides that of TCPConn, which would go round Read.
func (c *podConn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{c}) }

// dial connects to a port as the pod's processes would: IPv4 loopback, then IPv6.
func dial(ctx context.Context, netns string, port int32) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var c net.Conn
	connect := func() error {
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			// One address and no name: the dialer makes the socket in this very thread, which is in the pod's namespace.
			var err error
			if c, err = new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port)))); err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	var err error
	if netns == "" {
		err = connect()
	} else {
		err = ns.Do(netns, connect)
	}
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}
