package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
)

// ErrClosed is what calls in flight and later ones get when the other end is gone.
var ErrClosed = errors.New("connection closed")

// A Handler answers calls and takes notifications (whose answer is dropped). Each runs in a goroutine of its own; ctx
// is done when the caller cancels or the connection ends. It owns the files of the message, and gives up those of
// its answer.
type Handler func(ctx context.Context, m *Message) (answer any, files []*os.File, err error)

// Message is a call or notification that came in.
type Message struct {
	Method string
	Notice bool // nobody waits for an answer
	Files  []*os.File
	body   []byte
}

// Decode reads the message's body into v.
func (m *Message) Decode(v any) error {
	if err := json.Unmarshal(m.body, v); err != nil {
		return fmt.Errorf("%s: body: %w", m.Method, err)
	}
	return nil
}

// Coded is an error with a code that the other end can branch on.
type Coded interface {
	error
	WireCode() string
}

// RemoteError is an error that the other end answered.
type RemoteError struct{ Code, Text string }

func (e *RemoteError) Error() string { return e.Text }

// Peer is one end of a connection.
type Peer struct {
	conn    *conn
	handler Handler
	inline  func(method string) bool
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup // handlers
	done    chan struct{}  // closed when nothing more will be read

	mu      sync.Mutex // guards what follows
	lastID  uint64
	waiting map[uint64]chan frame
	serving map[uint64]context.CancelFunc
	err     error
}

// NewPeer takes over the socket. Messages whose method inline accepts are handled in the order in which they came,
// before the next is read; inline may be nil. Serve must be called for anything to be read.
func NewPeer(ctx context.Context, socket *net.UnixConn, h Handler, inline func(method string) bool) *Peer {
	p := &Peer{
		conn: newConn(socket), handler: h, inline: inline, done: make(chan struct{}),
		waiting: map[uint64]chan frame{}, serving: map[uint64]context.CancelFunc{},
	}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// Serve reads until the connection ends, and returns when all handlers have. The error is nil for an orderly end.
func (p *Peer) Serve() error {
	var err error
	for err == nil {
		var f frame
		if f, err = p.conn.read(); err == nil {
			p.dispatch(f)
		}
	}
	p.cancel()
	p.conn.close()
	p.conn.closeFiles()
	p.mu.Lock()
	p.err = ErrClosed
	for id, answer := range p.waiting {
		close(answer)
		delete(p.waiting, id)
	}
	p.mu.Unlock()
	close(p.done)
	p.running.Wait()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Done is closed when the connection has ended.
func (p *Peer) Done() <-chan struct{} { return p.done }

// Close ends the connection; Serve returns.
func (p *Peer) Close() error { return p.conn.close() }

func (p *Peer) dispatch(f frame) {
	switch {
	case f.Method == "":
		p.mu.Lock()
		answer, ok := p.waiting[f.ID]
		delete(p.waiting, f.ID)
		p.mu.Unlock()
		if !ok { // the caller has gone
			closeAll(f.files)
			return
		}
		answer <- f
	case f.Method == "cancel":
		p.mu.Lock()
		if cancel := p.serving[f.ID]; cancel != nil {
			cancel()
		}
		p.mu.Unlock()
	case p.inline != nil && p.inline(f.Method):
		p.serve(p.ctx, f)
	default:
		ctx, cancel := context.WithCancel(p.ctx)
		if f.ID != 0 {
			p.mu.Lock()
			p.serving[f.ID] = cancel
			p.mu.Unlock()
		}
		p.running.Go(func() {
			defer cancel()
			p.serve(ctx, f)
			p.mu.Lock()
			delete(p.serving, f.ID)
			p.mu.Unlock()
		})
	}
}

func (p *Peer) serve(ctx context.Context, f frame) {
	m := &Message{Method: f.Method, Notice: f.ID == 0, Files: f.files, body: f.body}
	answer, files, err := p.call(ctx, m)
	defer closeAll(files)
	if m.Notice {
		return
	}
	out := frame{header: header{ID: f.ID}, files: files}
	if err == nil && answer != nil {
		out.body, err = json.Marshal(answer)
	}
	if err != nil {
		out = failure(f.ID, err)
	}
	if err := p.conn.write(out); err != nil && !errors.Is(err, ErrClosed) { // a reader that is gone ends Serve, which is enough
		_ = p.conn.write(failure(f.ID, err))
	}
}

func failure(id uint64, err error) frame {
	f := frame{header: header{ID: id, Error: cut(err.Error())}}
	var coded Coded
	if errors.As(err, &coded) {
		f.Code = coded.WireCode()
	}
	return f
}

// maxError is how much of an error's text is sent. JSON may take six bytes for one of them, and it goes in a header.
const maxError = 8 << 10

// cut shortens a text that repeats what somebody else made too long. Errors begin with what they are about, and end
// with the reason.
func cut(text string) string {
	if len(text) <= maxError {
		return text
	}
	return strings.ToValidUTF8(text[:maxError/2], "") + " [...] " + strings.ToValidUTF8(text[len(text)-maxError/2:], "")
}

// call keeps a panic to the request that caused it.
func (p *Peer) call(ctx context.Context, m *Message) (answer any, files []*os.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", m.Method, r, debug.Stack())
		}
	}()
	return p.handler(ctx, m)
}

// Call sends a request and waits for its answer, which is decoded into answer unless that is nil. The caller keeps
// files, and owns those of the answer. When ctx is done the other end is told.
func (p *Peer) Call(ctx context.Context, method string, body, answer any, files ...*os.File) ([]*os.File, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	ch := make(chan frame, 1)
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return nil, p.err
	}
	p.lastID++
	id := p.lastID
	p.waiting[id] = ch
	p.mu.Unlock()
	if err := p.conn.write(frame{header: header{ID: id, Method: method}, body: raw, files: files}); err != nil {
		p.forget(id)
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	select {
	case f, ok := <-ch:
		if !ok {
			return nil, ErrClosed
		}
		return finish(f, answer)
	case <-ctx.Done():
		p.forget(id)
		_ = p.conn.write(frame{header: header{ID: id, Method: "cancel"}})
		select { // the answer may have come at the same moment
		case f, ok := <-ch:
			if ok {
				closeAll(f.files)
			}
		default:
		}
		return nil, ctx.Err()
	}
}

func finish(f frame, answer any) ([]*os.File, error) {
	if f.Error != "" {
		closeAll(f.files)
		return nil, &RemoteError{Code: f.Code, Text: f.Error}
	}
	if answer != nil && len(f.body) > 0 {
		if err := json.Unmarshal(f.body, answer); err != nil {
			closeAll(f.files)
			return nil, fmt.Errorf("answer: %w", err)
		}
	}
	return f.files, nil
}

// Notify sends a message that nobody answers. Once it has returned, the message reaches the other end even if this
// process is killed.
func (p *Peer) Notify(method string, body any, files ...*os.File) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return p.conn.write(frame{header: header{Method: method}, body: raw, files: files})
}

func (p *Peer) forget(id uint64) {
	p.mu.Lock()
	delete(p.waiting, id)
	p.mu.Unlock()
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func keepAlive(f *os.File) { runtime.KeepAlive(f) }
