package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

// protocols are the two ways of a client to speak to a stream server.
var protocols = map[string]func(address string) (remotecommand.Executor, error){
	"websocket": func(address string) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, address)
	},
	"spdy": func(address string) (remotecommand.Executor, error) {
		at, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, at)
	},
}

// eachProtocol skips WebSocket with foreign runtimes, of which not all speak it.
func eachProtocol(t *testing.T, f func(t *testing.T, dial func(string) (remotecommand.Executor, error))) {
	for name, dial := range protocols {
		t.Run(name, func(t *testing.T) {
			if name == "websocket" {
				ours(t)
			}
			f(t, dial)
		})
	}
}

// stream connects to address and waits for the end.
func stream(t testing.TB, dial func(string) (remotecommand.Executor, error), address string, o remotecommand.StreamOptions) error {
	t.Helper()
	executor, err := dial(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), kernel.Patient(time.Minute))
	defer cancel()
	return executor.StreamWithContext(ctx, o)
}

func execURL(t testing.TB, req *cri.ExecRequest) string {
	t.Helper()
	r, err := node.Runtime.Exec(t.Context(), req)
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	return r.Url
}

func attachURL(t testing.TB, req *cri.AttachRequest) string {
	t.Helper()
	r, err := node.Runtime.Attach(t.Context(), req)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return r.Url
}

func TestExecStream(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	eachProtocol(t, func(t *testing.T, dial func(string) (remotecommand.Executor, error)) {
		var out, errs bytes.Buffer
		err := stream(t, dial, execURL(t, &cri.ExecRequest{
			ContainerId: ctr.ID, Cmd: []string{"sh", "-c", "cat; echo to err >&2; exit 9"}, Stdin: true, Stdout: true, Stderr: true,
		}), remotecommand.StreamOptions{Stdin: strings.NewReader("from the client\n"), Stdout: &out, Stderr: &errs})
		var exit utilexec.CodeExitError
		if !errors.As(err, &exit) || exit.Code != 9 {
			t.Errorf("error %v; want exit code 9", err)
		}
		if out.String() != "from the client\n" || errs.String() != "to err\n" {
			t.Errorf("out %q, err %q", out.String(), errs.String())
		}
	})
}

func TestExecStreamIsWhole(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	const lines, size = 100_000, 100
	eachProtocol(t, func(t *testing.T, dial func(string) (remotecommand.Executor, error)) {
		var out bytes.Buffer
		err := stream(t, dial, execURL(t, &cri.ExecRequest{
			ContainerId: ctr.ID, Cmd: []string{"/probe", "spam", "100000", "100"}, Stdout: true, Stderr: true,
		}), remotecommand.StreamOptions{Stdout: &out, Stderr: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		sequence(t, strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"), lines, size, 0)
	})
}

// A URL is for one connection.
func TestStreamURLIsForOnce(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	address := execURL(t, &cri.ExecRequest{ContainerId: ctr.ID, Cmd: []string{"true"}, Stdout: true})
	dial := protocols["spdy"]
	if err := stream(t, dial, address, remotecommand.StreamOptions{Stdout: io.Discard}); err != nil {
		t.Fatal(err)
	}
	if err := stream(t, dial, address, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		t.Error("the same URL worked twice")
	}
	at, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	if host := net.ParseIP(at.Hostname()); host == nil || !host.IsLoopback() {
		t.Logf("the stream server is at %s, not on loopback", at.Host)
		if own != nil {
			t.Fail()
		}
	}
}

// sizeQueue gives sizes to the terminal as they are sent.
type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	s, ok := <-q
	if !ok {
		return nil
	}
	return &s
}

// buffer is a bytes.Buffer that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) wait(t testing.TB, text string) {
	t.Helper()
	err := criclient.Wait(t.Context(), 20*time.Second, func() bool { return strings.Contains(b.String(), text) })
	if err != nil {
		t.Errorf("waiting for %q: %v; so far %q", text, err, b.String())
	}
}

func TestExecTerminalAndResize(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	ctr := sleeper(t, pod)
	eachProtocol(t, func(t *testing.T, dial func(string) (remotecommand.Executor, error)) {
		address := execURL(t, &cri.ExecRequest{ContainerId: ctr.ID, Cmd: []string{"/probe", "sizes"}, Stdin: true, Stdout: true, Tty: true})
		var out buffer
		sizes := make(sizeQueue, 2)
		in, keyboard := io.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- stream(t, dial, address, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: sizes})
		}()
		sizes <- remotecommand.TerminalSize{Width: 111, Height: 22}
		out.wait(t, "111x22")
		sizes <- remotecommand.TerminalSize{Width: 99, Height: 33}
		out.wait(t, "99x33")
		if _, err := keyboard.Write([]byte{3}); err != nil { // Ctrl-C
			t.Error(err)
		}
		var exit utilexec.CodeExitError
		if err := <-done; !errors.As(err, &exit) || exit.Code == 0 {
			t.Errorf("end by Ctrl-C: %v; want an exit code", err)
		}
		close(sizes)
		keyboard.Close()
	})
}

func TestAttach(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	eachProtocol(t, func(t *testing.T, dial func(string) (remotecommand.Executor, error)) {
		ctr := pod.Container(t, probe, criclient.Shell("while read line; do echo got $line; echo err $line >&2; done; echo end"),
			func(c *cri.ContainerConfig) { c.Stdin = true })
		var out, errs buffer
		in, keyboard := io.Pipe()
		done := make(chan error, 1)
		address := attachURL(t, &cri.AttachRequest{ContainerId: ctr.ID, Stdin: true, Stdout: true, Stderr: true})
		go func() {
			done <- stream(t, dial, address, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errs})
		}()
		if _, err := io.WriteString(keyboard, "hello\n"); err != nil {
			t.Fatal(err)
		}
		out.wait(t, "got hello\n")
		errs.wait(t, "err hello\n")
		ctr.WaitLog(t, "got hello") // a copy goes to the log
		// Without stdin-once the container's input outlives a client.
		keyboard.Close()
		if st := ctr.Status(t); st.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("container is %v after the client's input ended", st.State)
		}
		ctr.Stop(t, 0)
		if err := <-done; err != nil && !errors.Is(err, io.EOF) {
			t.Logf("attach ended with %v", err)
		}
	})
}

func TestStdinOnce(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	eachProtocol(t, func(t *testing.T, dial func(string) (remotecommand.Executor, error)) {
		ctr := pod.Container(t, probe, criclient.Shell("cat; echo end"), func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
		var out buffer
		err := stream(t, dial, attachURL(t, &cri.AttachRequest{ContainerId: ctr.ID, Stdin: true, Stdout: true, Stderr: true}),
			remotecommand.StreamOptions{Stdin: strings.NewReader("all there is\n"), Stdout: &out, Stderr: io.Discard})
		if err != nil {
			t.Errorf("attach: %v", err)
		}
		st := ctr.WaitExit(t)
		if text := ctr.Text(t); st.ExitCode != 0 || text != "all there is\nend\n" {
			t.Errorf("exit code %d, log %q; want the input and its end", st.ExitCode, text)
		}
		if got := out.String(); !strings.HasPrefix(got, "all there is\n") {
			t.Errorf("the client saw %q", got)
		}
	})
}

func TestAttachTerminal(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t, criclient.HostNetwork)
	eachProtocol(t, func(t *testing.T, dial func(string) (remotecommand.Executor, error)) {
		ctr := pod.Container(t, probe, criclient.Run("/bin/sh"), func(c *cri.ContainerConfig) { c.Stdin, c.Tty = true, true })
		var out buffer
		in, keyboard := io.Pipe()
		sizes := make(sizeQueue, 1)
		done := make(chan error, 1)
		address := attachURL(t, &cri.AttachRequest{ContainerId: ctr.ID, Stdin: true, Stdout: true, Tty: true})
		go func() {
			done <- stream(t, dial, address, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: sizes})
		}()
		sizes <- remotecommand.TerminalSize{Width: 77, Height: 44}
		criclient.Eventually(t, 20*time.Second, "the terminal's size", func() bool {
			_, err := io.WriteString(keyboard, "stty size; echo $((6*7))\n")
			return err == nil && strings.Contains(out.String(), "44 77")
		})
		out.wait(t, "42")
		if _, err := io.WriteString(keyboard, "exit 4\n"); err != nil {
			t.Error(err)
		}
		if st := ctr.WaitExit(t); st.ExitCode != 4 {
			t.Errorf("exit code %d; want 4", st.ExitCode)
		}
		select {
		case <-done:
		case <-time.After(kernel.Patient(20 * time.Second)):
			t.Error("attach did not end with the container")
		}
		close(sizes)
		keyboard.Close()
	})
}

func TestPortForward(t *testing.T) {
	t.Parallel()
	pod := node.Pod(t)
	pod.Container(t, probe, criclient.Run("/probe", "serve", "8080")).WaitLog(t, "listening")
	t.Run("spdy", func(t *testing.T) {
		port, end := forward(t, pod)
		// Several connections at a time, each with more than a window of data.
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { echoThrough(t, port) })
		}
		wg.Wait()
		end()
	})
	t.Run("websocket", func(t *testing.T) {
		ours(t)
		forwardFrames(t, pod)
	})
}

// forwardFrames speaks the protocol of frames, each with the channel in its first byte: 0 for data, 1 for errors. Both
// begin with the port in two bytes, the lower first.
func forwardFrames(t testing.TB, pod *criclient.Pod) {
	r, err := node.Runtime.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: pod.ID, Port: []int32{8080}})
	if err != nil {
		t.Fatal(err)
	}
	at, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	at.Scheme = "ws"
	at.RawQuery = "port=8080"
	dialer := websocket.Dialer{Subprotocols: []string{"v4.channel.k8s.io"}, HandshakeTimeout: kernel.Patient(10 * time.Second)}
	c, answer, err := dialer.DialContext(t.Context(), at.String(), http.Header{"Origin": {"http://" + at.Host}})
	if err != nil {
		t.Fatalf("%v: %v", err, answer)
	}
	defer c.Close()
	if err := c.WriteMessage(websocket.BinaryMessage, append([]byte{0}, "hello"...)); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(kernel.Patient(20 * time.Second))); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for len(got) < len("\x90\x1fhello") {
		_, frame, err := c.ReadMessage()
		if err != nil {
			t.Fatalf("%v; so far %q", err, got)
		}
		if len(frame) > 0 && frame[0] == 0 {
			got = append(got, frame[1:]...)
		}
	}
	if string(got) != "\x90\x1fhello" {
		t.Errorf("the data channel brought %q; want the port 8080 and the echo", got)
	}
}

// forward opens a local port that leads to port 8080 of the pod.
func forward(t testing.TB, pod *criclient.Pod) (port uint16, end func()) {
	t.Helper()
	r, err := node.Runtime.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: pod.ID, Port: []int32{8080}})
	if err != nil {
		t.Fatal(err)
	}
	at, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at)
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return ports[0].Local, func() { close(stop); <-done }
}

func echoThrough(t testing.TB, port uint16) {
	c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 16<<10)
	go func() {
		_, _ = c.Write(sent) // the reader notices if less arrives
		_ = c.CloseWrite()
	}()
	_ = c.SetReadDeadline(time.Now().Add(kernel.Patient(30 * time.Second)))
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("echo through the forwarded port: %v", err)
	}
}
