package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/test/kernel"
)

// echo answers what it has been told once its client has nothing more to say.
func echo(t *testing.T, network, address string) int {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return serveEcho(t, l)
}

func serveEcho(t *testing.T, l net.Listener) int {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				said, _ := io.ReadAll(c)
				fmt.Fprintf(c, "you said %d bytes", len(said))
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// forwardPort returns the local address that a real client forwards to a port of the pod.
func forwardPort(t *testing.T, s *Server, port int) string {
	t.Helper()
	return forwardPortBy(t, s, port, spdyDialer)
}

func spdyDialer(at *url.URL) (httpstream.Dialer, error) {
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at), err
}

func tunnelDialer(at *url.URL) (httpstream.Dialer, error) {
	return portforward.NewSPDYOverWebsocketDialer(at, &rest.Config{})
}

func forwardPortBy(t *testing.T, s *Server, port int, by func(*url.URL) (httpstream.Dialer, error)) string {
	t.Helper()
	answer, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(answer.Url)
	if err != nil {
		t.Fatal(err)
	}
	dialer, err := by(u)
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	t.Cleanup(func() {
		close(stop)
		if err := <-done; err != nil && !errors.Is(err, portforward.ErrLostConnectionToPod) {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
}

// ask says something, ends its half, and returns the answer.
func ask(t *testing.T, at string, bytes int) string {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, bytes)); err != nil {
		t.Error(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(answer)
}

func TestPortForward(t *testing.T) {
	for _, tt := range []struct {
		network, address string
		by               func(*url.URL) (httpstream.Dialer, error)
	}{{"tcp4", "127.0.0.1:0", spdyDialer}, {"tcp6", "[::1]:0", spdyDialer}, {"tcp4", "127.0.0.1:0", tunnelDialer}} {
		t.Run(tt.network, func(t *testing.T) {
			s := newServer(t, &localMonitor{}, allRunning{})
			at := forwardPortBy(t, s, echo(t, tt.network, tt.address), tt.by)
			for _, size := range []int{0, 5, 1 << 20} { // several connections, each with a half that ends first
				if got, want := ask(t, at, size), fmt.Sprintf("you said %d bytes", size); got != want {
					t.Errorf("%q, want %q", got, want)
				}
			}
		})
	}
}

// A port of the pod is not one of the host.
func TestPortForwardIntoNamespace(t *testing.T) {
	kernel.Require(t, kernel.Root)
	dir := filepath.Join(t.TempDir(), "ns")
	if err := ns.Create(t.Context(), ns.Options{Dir: dir, Net: true}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ns.Delete(context.Background(), dir); err != nil {
			t.Error(err)
		}
	}()
	netns := filepath.Join(dir, "net")
	var l net.Listener
	err := ns.Do(netns, func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	port := serveEcho(t, l)
	s := newServer(t, &localMonitor{}, allRunning{netns: netns})
	at := forwardPort(t, s, port)
	if got := ask(t, at, 7); got != "you said 7 bytes" {
		t.Errorf("%q", got)
	}
	var refused *net.OpError
	if err := s.forward(t.Context(), "p", int32(port)-1, nil); !errors.As(err, &refused) {
		t.Errorf("a port that nobody listens on: %v", err)
	}
}

func TestPortForwardToNobody(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	at := forwardPort(t, s, port)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, _ := io.ReadAll(c); len(got) > 0 { // refused or reset: it ends in any case
		t.Errorf("%q", got)
	}
	if err := s.forward(t.Context(), "p", int32(port), nil); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d", port)) {
		t.Errorf("%v", err)
	}
}

// The ports of the request are those of a WebSocket client: two channels each, which begin with the port's number.
func TestPortForwardChannels(t *testing.T) {
	s := newServer(t, &localMonitor{}, allRunning{})
	port := echo(t, "tcp4", "127.0.0.1:0")
	answer, err := s.PortForward(t.Context(), &cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{int32(port), 1}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := websocket.NewConfig(strings.Replace(answer.Url, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	c, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := map[byte]string{}
	for len(got[0]) < 2 || len(got[1]) < 2 || len(got[3]) < 3 { // channel 3: that nobody listens on port 1
		var message []byte
		if err := websocket.Message.Receive(c, &message); err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		got[message[0]] += string(message[1:])
	}
	if want := string([]byte{byte(port), byte(port >> 8)}); got[0] != want || got[1] != want || !strings.Contains(got[3], "port 1") {
		t.Errorf("%q", got)
	}
}
