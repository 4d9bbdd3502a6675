package stream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
)

// listener knows its connections: once one has been upgraded, the HTTP server neither closes it nor tells its handler
// that the client has gone.
type listener struct {
	net.Listener

	mu    sync.Mutex // guards what follows
	conns map[*conn]struct{}
	ended bool
}

func newListener(l net.Listener) *listener {
	return &listener{Listener: l, conns: map[*conn]struct{}{}}
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	tracked := &conn{Conn: c, of: l, ctx: ctx, cancel: cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		cancel()
		c.Close()
		return nil, net.ErrClosed
	}
	l.conns[tracked] = struct{}{}
	return tracked, nil
}

func (l *listener) closeAll() {
	l.mu.Lock()
	l.ended = true
	conns := l.conns
	l.conns = map[*conn]struct{}{}
	l.mu.Unlock()
	for c := range conns {
		c.Close()
	}
}

// conn is a connection whose context ends with it.
type conn struct {
	net.Conn
	of     *listener
	ctx    context.Context
	cancel context.CancelFunc
}

// Read notices the end. The protocol libraries always read, so a client that has gone is noticed at once.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	// A deadline is how the HTTP server gets its own reader out of the way of an upgrade.
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.cancel()
	}
	return n, err
}

func (c *conn) Close() error {
	c.cancel()
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// connKey is under what a request's context has its connection.
type connKey struct{}

// connContext makes the requests of a connection end with it.
func connContext(ctx context.Context, c net.Conn) context.Context {
	own, ok := c.(*conn)
	if !ok {
		return ctx
	}
	ctx, cancel := context.WithCancel(context.WithValue(ctx, connKey{}, own))
	context.AfterFunc(own.ctx, cancel)
	return ctx
}

// closeConn closes the connection that a request came on.
func closeConn(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		c.Close()
	}
}
