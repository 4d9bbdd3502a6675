// Package stream runs commands in containers and connects clients to containers and pods: ExecSync, and Exec, Attach
// and PortForward over WebSocket and SPDY.
//
// A streaming call has two halves. The RPC checks the request and answers a URL on loopback with a token that is good
// once and for a minute; the client then opens that URL. The protocols are those of k8s.io/cri-streaming, except for
// version 5 of the WebSocket one, which that library does not serve yet.
//
// What a client does not see never waits for it: an exec ends with its process, also if a grandchild holds its pipes,
// and an exec whose client has gone is killed with everything that it started.
package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/orlop/orlop/conmon"
)

// Config says where streams are served.
type Config struct {
	// Address is host:port; port 0 takes a free one.
	Address string
	// IdleTimeout ends a stream on which nothing has moved for so long.
	IdleTimeout time.Duration
}

// Monitor is what streams need of [conmon.Client].
type Monitor interface {
	Exec(ctx context.Context, r conmon.ExecRequest, stdio conmon.Stdio) (conmon.ExecResult, error)
	Attach(ctx context.Context, id string) (*conmon.Attachment, error)
	CloseStdin(ctx context.Context, id string) error
	Resize(ctx context.Context, id string, width, height uint16) error
}

// Subjects finds what a request names.
type Subjects interface {
	// RunningContainer returns the whole ID of a running container that is named by it or by the beginning of it.
	// store.ErrNotFound, store.ErrState.
	RunningContainer(id string) (string, error)
	// PodNetNS returns the path of a ready pod's network namespace, "" for the host's. store.ErrNotFound,
	// store.ErrState.
	PodNetNS(id string) (string, error)
}

// Server is safe for concurrent use. Its methods that are named like RPCs are those of the CRI RuntimeService.
type Server struct {
	cfg      Config
	monitor  Monitor
	subjects Subjects
	log      *slog.Logger
	tokens   *tokens

	listener *listener
	http     *http.Server
	served   chan struct{} // closed when http has returned

	ctx    context.Context // ends with Close: for work that the protocol libraries start without a context
	cancel context.CancelFunc

	mu       sync.Mutex // guards what follows
	closed   bool       // no more work is begun
	requests sync.WaitGroup
	copies   sync.WaitGroup // goroutines of requests, which may outlive them until their client has gone
}

const (
	// headerTime is how long a client that has connected may take to send its request.
	headerTime = 10 * time.Second
	// creationTime is how long an SPDY client may take to open the streams that it asked for.
	creationTime = 30 * time.Second
	// farewellTime is how long Close lets clients take to be told that their stream has ended. An SPDY client that is
	// told nothing reports success.
	farewellTime = 2 * time.Second
)

// New listens and serves.
func New(cfg Config, m Monitor, subjects Subjects, log *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("stream.address: %w", err)
	}
	s := &Server{
		cfg: cfg, monitor: m, subjects: subjects, log: log, tokens: newTokens(),
		listener: newListener(l), served: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: headerTime,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext:       connContext,
	}
	go func() {
		defer close(s.served)
		if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("streams are not served any more", "err", err)
		}
	}()
	return s, nil
}

// LogLibrary leads what the protocol libraries say through klog, which is the process's, into the daemon's log. It is
// for the program's start. To them each client that goes is an error; here it is a matter for debugging.
func LogLibrary(log *slog.Logger) { klog.SetSlogLogger(slog.New(debugOnly{log.Handler()})) }

// debugOnly is a handler to which nothing matters much.
type debugOnly struct{ slog.Handler }

func (h debugOnly) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

func (h debugOnly) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return h.Handler.Handle(ctx, r)
}

func (h debugOnly) WithAttrs(attrs []slog.Attr) slog.Handler {
	return debugOnly{h.Handler.WithAttrs(attrs)}
}
func (h debugOnly) WithGroup(name string) slog.Handler { return debugOnly{h.Handler.WithGroup(name)} }

// Close ends all streams, and with them their execs, and waits until all is over. Containers go on.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	told := make(chan struct{})
	go func() {
		s.requests.Wait()
		close(told)
	}()
	select {
	case <-told:
	case <-time.After(farewellTime):
	}
	err := s.http.Close()
	s.listener.closeAll() // also those that an upgrade took out of the HTTP server's hands
	<-s.served
	<-told
	s.copies.Wait()
	return err
}

// begin counts a request that Close waits for. It returns false after Close; then the request must not be served.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.requests.Add(1)
	return true
}

// spawn runs f in a goroutine that Close waits for. Its caller has begun a request, so Close has not got past it.
func (s *Server) spawn(f func()) { s.copies.Go(f) }
