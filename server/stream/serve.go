package stream

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/orlop/orlop/conmon"
)

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for path, serve := range map[string]func(http.ResponseWriter, *http.Request, proto.Message) bool{
		"/exec/{token}":        s.serveExec,
		"/attach/{token}":      s.serveAttach,
		"/portforward/{token}": s.servePortForward,
	} {
		handler := s.redeem(serve)
		mux.HandleFunc("GET "+path, handler) // WebSocket
		mux.HandleFunc("POST "+path, handler)
	}
	return mux
}

// redeem serves who has a token. Serve returns false for a token of another kind.
func (s *Server) redeem(serve func(http.ResponseWriter, *http.Request, proto.Message) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.begin() {
			http.Error(w, "the runtime is stopping", http.StatusServiceUnavailable)
			return
		}
		defer s.requests.Done()
		req := s.tokens.take(r.PathValue("token"))
		if req == nil || !serve(w, r, req) {
			http.NotFound(w, r)
		}
	}
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, m proto.Message) bool {
	req, ok := m.(*cri.ExecRequest)
	if !ok {
		return false
	}
	c := command{server: s, id: req.GetContainerId(), args: req.GetCmd(), want: wanted(req)}
	if isV5(r) {
		s.serveV5(w, r, c.want, func(ctx context.Context, st streams) error { return c.exec(ctx, st) })
		return true
	}
	remotecommand.ServeExec(w, r, c, "", "", c.id, c.args, &c.want, s.cfg.IdleTimeout, creationTime,
		remotecommand.SupportedStreamingProtocols)
	return true
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, m proto.Message) bool {
	req, ok := m.(*cri.AttachRequest)
	if !ok {
		return false
	}
	c := command{server: s, id: req.GetContainerId(), want: wanted(req)}
	if isV5(r) {
		s.serveV5(w, r, c.want, func(ctx context.Context, st streams) error { return s.attach(ctx, c.id, st) })
		return true
	}
	remotecommand.ServeAttach(w, r, c, "", "", c.id, &c.want, s.cfg.IdleTimeout, creationTime,
		remotecommand.SupportedStreamingProtocols)
	return true
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, m proto.Message) bool {
	req, ok := m.(*cri.PortForwardRequest)
	if !ok {
		return false
	}
	// The library goes on until the client does.
	defer context.AfterFunc(s.ctx, func() { closeConn(r) })()
	serve := func(w http.ResponseWriter, r *http.Request) {
		ports := &portforward.V4Options{Ports: req.GetPort()}
		portforward.ServePortForward(w, r, forwarder{s}, req.GetPodSandboxId(), "", ports, s.cfg.IdleTimeout, creationTime,
			portforward.SupportedProtocols)
	}
	if isTunnel(r) {
		serveTunnel(w, r, serve)
	} else {
		serve(w, r)
	}
	return true
}

func wanted(req interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}) remotecommand.Options {
	return remotecommand.Options{
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr(), TTY: req.GetTty(),
	}
}

// command is one exec or attach, in the form that the protocol library calls.
type command struct {
	server *Server
	id     string
	args   []string
	want   remotecommand.Options
}

func (c command) exec(ctx context.Context, st streams) error {
	code, err := c.server.exec(ctx, conmon.ExecRequest{ID: c.id, Args: c.args, Terminal: st.tty}, st)
	if err == nil && code != 0 {
		return exitError(code)
	}
	return err
}

// ExecInContainer is called by the library, whose streams may be there although nobody asked for them.
func (c command) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, err io.WriteCloser, tty bool, sizes <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return c.exec(ctx, c.streams(in, out, err, sizes))
}

// AttachContainer is called by the library.
func (c command) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, tty bool, sizes <-chan remotecommand.TerminalSize) error {
	return c.server.attach(ctx, c.id, c.streams(in, out, err, sizes))
}

// streams leaves out those that the request does not have.
func (c command) streams(in io.Reader, out, err io.Writer, sizes <-chan remotecommand.TerminalSize) streams {
	st := streams{tty: c.want.TTY, resize: sizes}
	if c.want.Stdin {
		st.in = in
	}
	if c.want.Stdout {
		st.out = out
	}
	if c.want.Stderr {
		st.err = err
	}
	return st
}

// exitError tells the library the exit code of a command that has run.
type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("exit code %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

// forwarder is called by the library, in goroutines of its own.
type forwarder struct{ server *Server }

// PortForward ignores the context, which is the library's and never ends.
func (f forwarder) PortForward(_ context.Context, pod, _ string, port int32, client io.ReadWriteCloser) error {
	if !f.server.begin() {
		return net.ErrClosed
	}
	defer f.server.requests.Done()
	return f.server.forward(f.server.ctx, pod, port, client)
}
