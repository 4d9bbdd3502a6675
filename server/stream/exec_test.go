package stream

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// clients are the protocols of real clients: kubelets and crictl speak SPDY or version 5 of the WebSocket protocol,
// older ones version 4.
var clients = map[string]func(t *testing.T, at string) remotecommand.Executor{
	"spdy": func(t *testing.T, at string) remotecommand.Executor {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		return must(t)(remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u))
	},
	"websocket v5": func(t *testing.T, at string) remotecommand.Executor {
		return must(t)(remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, at))
	},
	"websocket v4": func(t *testing.T, at string) remotecommand.Executor {
		return must(t)(remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, at, "v4.channel.k8s.io"))
	},
}

func must(t *testing.T) func(remotecommand.Executor, error) remotecommand.Executor {
	return func(e remotecommand.Executor, err error) remotecommand.Executor {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
}

// eachClient runs a test with each kind of client.
func eachClient(t *testing.T, f func(t *testing.T, connect func(at string) remotecommand.Executor)) {
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			f(t, func(at string) remotecommand.Executor { return client(t, at) })
		})
	}
}

func execURL(t *testing.T, s *Server, req *cri.ExecRequest) string {
	t.Helper()
	req.ContainerId = "c"
	answer, err := s.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Url
}

func TestExec(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	eachClient(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		at := execURL(t, s, &cri.ExecRequest{
			Cmd: []string{"sh", "-c", "echo to err >&2; read line; echo got $line; exit 5"}, Stdin: true, Stdout: true, Stderr: true,
		})
		var out, errOut bytes.Buffer
		err := connect(at).StreamWithContext(t.Context(), remotecommand.StreamOptions{
			Stdin: strings.NewReader("input\n"), Stdout: &out, Stderr: &errOut,
		})
		if exit, ok := err.(exec.CodeExitError); !ok || exit.Code != 5 {
			t.Errorf("%T: %v", err, err)
		}
		if out.String() != "got input\n" || errOut.String() != "to err\n" {
			t.Errorf("%q, %q", out.String(), errOut.String())
		}
	})
}

// The end of the client's input reaches the process, and the output after it the client. Version 4 of the WebSocket
// protocol has no word for it.
func TestExecInputEnds(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	for _, name := range []string{"spdy", "websocket v5"} {
		t.Run(name, func(t *testing.T) {
			at := execURL(t, s, &cri.ExecRequest{Cmd: []string{"wc", "-c"}, Stdin: true, Stdout: true})
			var out bytes.Buffer
			err := clients[name](t, at).StreamWithContext(t.Context(), remotecommand.StreamOptions{
				Stdin: strings.NewReader(strings.Repeat("x", 1<<20)), Stdout: &out,
			})
			if err != nil || strings.TrimSpace(out.String()) != strconv.Itoa(1<<20) {
				t.Errorf("%q, %v", out.String(), err)
			}
		})
	}
}

func TestExecOutputIsWhole(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	eachClient(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		const size = 8 << 20
		at := execURL(t, s, &cri.ExecRequest{Cmd: []string{"head", "-c", strconv.Itoa(size), "/dev/zero"}, Stdout: true})
		var out bytes.Buffer
		if err := connect(at).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out}); err != nil || out.Len() != size {
			t.Errorf("%d bytes, %v", out.Len(), err)
		}
	})
}

func TestExecOfMissingProgram(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	eachClient(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		at := execURL(t, s, &cri.ExecRequest{Cmd: []string{"/no/such/program"}, Stdout: true, Tty: true})
		err := connect(at).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Tty: true})
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("%v", err)
		}
	})
}

// sizes are the terminal sizes that a client sends.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func TestExecTerminal(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	eachClient(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		at := execURL(t, s, &cri.ExecRequest{
			// The size is set by the client at any time: the script waits for it.
			Cmd:   []string{"sh", "-c", `test -t 0 && until [ "$(stty size)" = "33 77" ]; do read -t 1 line; done; read line; echo "got $line"; exit 4`},
			Stdin: true, Stdout: true, Tty: true,
		})
		queue := make(sizes, 1)
		queue <- remotecommand.TerminalSize{Width: 77, Height: 33}
		defer close(queue)
		in, typing := io.Pipe()
		defer in.Close()
		typed := make(chan error, 1)
		go func() { // the reads before the size came take a line each; all later ones are the last read's
			for {
				if _, err := typing.Write([]byte("hello\n")); err != nil {
					typed <- nil
					return
				}
			}
		}()
		var out bytes.Buffer
		err := connect(at).StreamWithContext(t.Context(), remotecommand.StreamOptions{
			Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: queue,
		})
		if exit, ok := err.(exec.CodeExitError); !ok || exit.Code != 4 {
			t.Errorf("%T: %v", err, err)
		}
		if !strings.Contains(out.String(), "got hello\r\n") {
			t.Errorf("%.200q…", out.String())
		}
		in.Close()
		<-typed
	})
}

// A client that goes takes its process along, and what that has started.
func TestExecEndsWithItsClient(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run("tty="+strconv.FormatBool(tty), func(t *testing.T) {
			m := &localMonitor{}
			s := newServer(t, m, allRunning{})
			eachClient(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
				at := execURL(t, s, &cri.ExecRequest{Cmd: []string{"sh", "-c", "echo ready; sleep 1000"}, Stdout: true, Tty: tty})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ready := &firstWrite{then: cancel}
				if err := connect(at).StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: ready, Tty: tty}); err == nil {
					t.Error("the exec has ended by itself")
				}
				eventually(t, "no exec runs", func() bool { return m.execs() == 0 })
			})
		})
	}
}

// firstWrite calls a function when something is written.
type firstWrite struct {
	once sync.Once
	then func()
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.once.Do(w.then)
	return len(p), nil
}

func TestCloseEndsExecs(t *testing.T) {
	m := &localMonitor{}
	s := newServer(t, m, allRunning{})
	at := execURL(t, s, &cri.ExecRequest{Cmd: []string{"sh", "-c", "echo ready; sleep 1000"}, Stdout: true})
	ready, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- clients["spdy"](t, at).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &firstWrite{then: cancel}})
	}()
	<-ready.Done()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("the client was told of success")
	}
	if n := m.execs(); n != 0 {
		t.Errorf("%d execs run after Close", n)
	}
}

func TestTokensAreGoodOnce(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	at := execURL(t, s, &cri.ExecRequest{Cmd: []string{"true"}, Stdout: true})
	for i, want := range []bool{true, false} {
		err := clients["spdy"](t, at).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
		if (err == nil) != want {
			t.Errorf("use %d: %v", i, err)
		}
	}
	at = execURL(t, s, &cri.ExecRequest{Cmd: []string{"true"}, Stdout: true})
	for _, wrong := range []string{strings.Replace(at, "/exec/", "/attach/", 1), at + "x", strings.TrimSuffix(at, at[len(at)-5:])} {
		resp, err := http.Post(wrong, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", wrong, resp.Status)
		}
	}
}

// eventually waits for what happens in another goroutine or process and tells nobody.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// killGroupOf ends what a test left running on purpose.
func killGroupOf(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	group, err := unix.Getpgid(n)
	if err == nil {
		err = unix.Kill(-group, unix.SIGKILL)
	}
	if err != nil {
		t.Error(err)
	}
}
