package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// peers returns a caller whose calls h answers.
func peers(t testing.TB, h Handler, inline func(string) bool) (caller, server *Peer) {
	a, b := pair(t)
	caller = NewPeer(t.Context(), a, func(context.Context, *Message) (any, []*os.File, error) {
		return nil, nil, errors.New("nobody calls the caller")
	}, nil)
	server = NewPeer(t.Context(), b, h, inline)
	var done sync.WaitGroup
	done.Go(func() { _ = caller.Serve() })
	done.Go(func() { _ = server.Serve() })
	t.Cleanup(func() {
		caller.Close()
		server.Close()
		done.Wait()
	})
	return caller, server
}

type coded struct{ text, code string }

func (e coded) Error() string    { return e.text }
func (e coded) WireCode() string { return e.code }

func TestCall(t *testing.T) {
	caller, _ := peers(t, func(_ context.Context, m *Message) (any, []*os.File, error) {
		var in string
		if err := m.Decode(&in); err != nil {
			return nil, nil, err
		}
		switch m.Method {
		case "upper":
			return strings.ToUpper(in), nil, nil
		case "fail":
			return nil, nil, fmt.Errorf("outer: %w", coded{in, "code-7"})
		}
		panic("as asked")
	}, nil)
	var out string
	big := strings.Repeat("x", 1<<20)
	for _, in := range []string{"", "a", big} {
		if _, err := caller.Call(t.Context(), "upper", in, &out); err != nil || out != strings.ToUpper(in) {
			t.Errorf("%d bytes: %d bytes, %v", len(in), len(out), err)
		}
	}
	_, err := caller.Call(t.Context(), "fail", "no", &out)
	var remote *RemoteError
	if !errors.As(err, &remote) || remote.Code != "code-7" || remote.Text != "outer: no" {
		t.Errorf("%#v", err)
	}
	if _, err := caller.Call(t.Context(), "panic", "", nil); !errors.As(err, &remote) || !strings.Contains(remote.Text, "as asked") {
		t.Errorf("panic: %v", err)
	}
	if _, err := caller.Call(t.Context(), "upper", "still here", &out); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

// What is too long is an error of its own call, and nobody else's.
func TestTooLarge(t *testing.T) {
	big := strings.Repeat("x", maxBody)
	started, goOn := make(chan struct{}), make(chan struct{})
	caller, _ := peers(t, func(_ context.Context, m *Message) (any, []*os.File, error) {
		switch m.Method {
		case "wait":
			close(started)
			<-goOn
			return "waited", nil, nil
		case "answer":
			return big, nil, nil
		case "error":
			return nil, nil, fmt.Errorf("exec %q: %w", strings.Repeat("\x01", 1<<20), coded{"no such program", "code-7"})
		}
		return nil, nil, nil
	}, nil)
	waited := make(chan error, 1)
	go func() {
		var out string
		_, err := caller.Call(t.Context(), "wait", nil, &out)
		waited <- err
	}()
	<-started
	if _, err := caller.Call(t.Context(), "request", big, nil); !errors.Is(err, errTooLarge) || errors.Is(err, ErrClosed) {
		t.Errorf("request: %v", err)
	}
	if err := caller.Notify("request", big); !errors.Is(err, errTooLarge) || errors.Is(err, ErrClosed) {
		t.Errorf("notice: %v", err)
	}
	if _, err := caller.Call(t.Context(), strings.Repeat("m", maxHeader), nil, nil); !errors.Is(err, errTooLarge) {
		t.Errorf("method: %v", err)
	}
	var remote *RemoteError
	if _, err := caller.Call(t.Context(), "answer", nil, nil); !errors.As(err, &remote) || !strings.Contains(remote.Text, errTooLarge.Error()) {
		t.Errorf("answer: %v", err)
	}
	_, err := caller.Call(t.Context(), "error", nil, nil)
	if !errors.As(err, &remote) || remote.Code != "code-7" || len(remote.Text) > 2*maxError ||
		!strings.HasPrefix(remote.Text, "exec ") || !strings.HasSuffix(remote.Text, "no such program") {
		t.Errorf("error: %.100v", err)
	}
	close(goOn)
	if err := <-waited; err != nil {
		t.Errorf("a call beside them: %v", err)
	}
}

func TestFiles(t *testing.T) {
	caller, _ := peers(t, func(_ context.Context, m *Message) (any, []*os.File, error) {
		return len(m.Files), m.Files, nil // sent back
	}, nil)
	var files []*os.File
	for i := range 5 {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprint(f, i)
		files = append(files, f)
	}
	var n int
	back, err := caller.Call(t.Context(), "echo", nil, &n, files...)
	if err != nil || n != 5 || len(back) != 5 {
		t.Fatalf("%d, %d files, %v", n, len(back), err)
	}
	for i, f := range back {
		data := make([]byte, 1)
		if _, err := f.ReadAt(data, 0); err != nil || string(data) != fmt.Sprint(i) {
			t.Errorf("file %d holds %q, %v", i, data, err)
		}
		f.Close()
	}
}

func TestCancel(t *testing.T) {
	cancelled := make(chan struct{})
	caller, _ := peers(t, func(ctx context.Context, m *Message) (any, []*os.File, error) {
		<-ctx.Done()
		close(cancelled)
		return nil, nil, ctx.Err()
	}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := caller.Call(ctx, "hang", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	<-cancelled
}

func TestNoticesKeepTheirOrder(t *testing.T) {
	var got []int
	caller, _ := peers(t, func(_ context.Context, m *Message) (any, []*os.File, error) {
		var n int
		err := m.Decode(&n)
		if m.Notice {
			got = append(got, n)
		}
		return got, nil, err
	}, func(string) bool { return true })
	for i := range 100 {
		if err := caller.Notify("note", i); err != nil {
			t.Fatal(err)
		}
	}
	var all []int
	if _, err := caller.Call(t.Context(), "barrier", 0, &all); err != nil || len(all) != 100 {
		t.Fatalf("%d notices, %v", len(all), err)
	}
	for i, n := range all {
		if i != n {
			t.Fatalf("notice %d is %d", i, n)
		}
	}
}

func TestPeerGone(t *testing.T) {
	hang := make(chan struct{})
	caller, server := peers(t, func(ctx context.Context, m *Message) (any, []*os.File, error) {
		close(hang)
		<-ctx.Done()
		return nil, nil, ctx.Err()
	}, nil)
	go func() {
		<-hang
		server.Close()
	}()
	if _, err := caller.Call(t.Context(), "hang", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("call in flight: %v", err)
	}
	<-caller.Done()
	if _, err := caller.Call(t.Context(), "later", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("later call: %v", err)
	}
}

// FuzzRead feeds frames from a stranger: reading ends with an error or a frame, and takes no more memory than came.
func FuzzRead(f *testing.F) {
	frame := func(head, body string) []byte {
		out := binary.LittleEndian.AppendUint32(nil, uint32(len(head)))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(body)))
		return append(append(out, head...), body...)
	}
	f.Add(frame(`{"id":1,"method":"x"}`, `{}`))
	f.Add(frame(`{"files":3}`, ``))
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := pair(t)
		go func() {
			_, _ = a.Write(data)
			a.Close()
		}()
		c := newConn(b)
		for {
			got, err := c.read()
			if err != nil {
				return
			}
			if len(got.files) > 0 || len(got.body) > len(data) {
				t.Fatalf("%d files and %d bytes out of %d bytes", len(got.files), len(got.body), len(data))
			}
		}
	})
}

func TestReadRefusesGiants(t *testing.T) {
	a, b := pair(t)
	head := make([]byte, 8)
	binary.LittleEndian.PutUint32(head[4:], maxBody+1)
	if _, err := a.Write(head); err != nil {
		t.Fatal(err)
	}
	if _, err := newConn(b).read(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

func BenchmarkCall(b *testing.B) {
	caller, _ := peers(b, func(_ context.Context, m *Message) (any, []*os.File, error) { return "ok", nil, nil }, nil)
	body := string(bytes.Repeat([]byte("x"), 8<<10))
	for b.Loop() {
		if _, err := caller.Call(context.Background(), "x", body, nil); err != nil {
			b.Fatal(err)
		}
	}
}
