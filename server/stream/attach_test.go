package stream

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func attachURL(t *testing.T, s *Server, req *cri.AttachRequest) string {
	t.Helper()
	req.ContainerId = "c"
	answer, err := s.Attach(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Url
}

func TestAttach(t *testing.T) {
	eachClient(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		m := &localMonitor{}
		s := newServer(t, m, allRunning{})
		end := m.startContainer(t, `read line; echo "out $line"; echo "err $line" >&2`, false)
		var out, errOut bytes.Buffer
		err := connect(attachURL(t, s, &cri.AttachRequest{Stdin: true, Stdout: true, Stderr: true})).StreamWithContext(
			t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("hi\n"), Stdout: &out, Stderr: &errOut})
		if err != nil || out.String() != "out hi\n" || errOut.String() != "err hi\n" {
			t.Errorf("%q, %q, %v", out.String(), errOut.String(), err)
		}
		end()
	})
}

// With stdin_once the container's input ends with its first client's, also where the protocol can't say so and the
// client just goes.
func TestAttachStdinOnce(t *testing.T) {
	eachClient(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		m := &localMonitor{}
		s := newServer(t, m, allRunning{})
		end := m.startContainer(t, `read line; echo ready; n=$(wc -c); echo "$n bytes" >&3`, true)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		in, typing := io.Pipe()
		go typing.Write([]byte("line\n12345"))
		leave := func() { // not before it is attached
			typing.Close()
			cancel()
		}
		// How it ends for this client is not the point.
		_ = connect(attachURL(t, s, &cri.AttachRequest{Stdin: true, Stdout: true})).StreamWithContext(ctx,
			remotecommand.StreamOptions{Stdin: in, Stdout: &firstWrite{then: leave}})
		if said := end(); !strings.HasSuffix(said, " bytes\n") {
			t.Errorf("%q", said)
		}
	})
}

// A client that goes does not disturb the container: its input stays open, and the next client is served.
func TestAttachTwice(t *testing.T) {
	eachClient(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		m := &localMonitor{}
		s := newServer(t, m, allRunning{})
		end := m.startContainer(t, `echo ready; read line; echo "out $line"; echo "end" >&3`, false)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		in, _ := io.Pipe()
		if err := connect(attachURL(t, s, &cri.AttachRequest{Stdin: true, Stdout: true})).StreamWithContext(ctx,
			remotecommand.StreamOptions{Stdin: in, Stdout: &firstWrite{then: cancel}}); err == nil {
			t.Error("the container has ended")
		}
		var out bytes.Buffer
		if err := connect(attachURL(t, s, &cri.AttachRequest{Stdin: true, Stdout: true})).StreamWithContext(t.Context(),
			remotecommand.StreamOptions{Stdin: strings.NewReader("again\n"), Stdout: &out}); err != nil {
			t.Error(err)
		}
		if said := end(); said != "end\n" {
			t.Errorf("%q", said)
		}
	})
}

func TestAttachTerminal(t *testing.T) {
	eachClient(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		m := &localMonitor{}
		s := newServer(t, m, allRunning{})
		out, in := osPipe(t), osPipe(t)
		m.container = &localContainer{stdin: in[1], stdout: out[0], terminal: true}
		queue := make(sizes, 1)
		queue <- remotecommand.TerminalSize{Width: 100, Height: 50}
		defer close(queue)
		done := make(chan error, 1)
		var got bytes.Buffer
		go func() {
			done <- connect(attachURL(t, s, &cri.AttachRequest{Stdout: true, Tty: true})).StreamWithContext(t.Context(),
				remotecommand.StreamOptions{Stdout: &got, Tty: true, TerminalSizeQueue: queue})
		}()
		eventually(t, "resized", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.sizes) > 0 && m.sizes[0] == [2]uint16{100, 50}
		})
		if _, err := out[1].WriteString("last words"); err != nil {
			t.Fatal(err)
		}
		out[1].Close() // the container's end
		if err := <-done; err != nil || got.String() != "last words" {
			t.Errorf("%q, %v", got.String(), err)
		}
	})
}
