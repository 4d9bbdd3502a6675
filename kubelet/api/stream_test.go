package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	streamcommand "k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// streamingURLs is what a runtime's streaming server gives out.
type streamingURLs interface {
	GetExec(*cri.ExecRequest) (*cri.ExecResponse, error)
	GetAttach(*cri.AttachRequest) (*cri.AttachResponse, error)
	GetPortForward(*cri.PortForwardRequest) (*cri.PortForwardResponse, error)
}

func (f *fakeRuntime) Exec(_ context.Context, req *cri.ExecRequest, _ ...grpc.CallOption) (*cri.ExecResponse, error) {
	if req.Cmd[0] == "busy" {
		return nil, status.Error(codes.ResourceExhausted, "too many")
	}
	return f.streaming.GetExec(req)
}

func (f *fakeRuntime) Attach(_ context.Context, req *cri.AttachRequest, _ ...grpc.CallOption) (*cri.AttachResponse, error) {
	return f.streaming.GetAttach(req)
}

func (f *fakeRuntime) PortForward(_ context.Context, req *cri.PortForwardRequest, _ ...grpc.CallOption) (*cri.PortForwardResponse, error) {
	return f.streaming.GetPortForward(req)
}

func (f *fakeRuntime) ListPodSandbox(_ context.Context, req *cri.ListPodSandboxRequest, _ ...grpc.CallOption) (*cri.ListPodSandboxResponse, error) {
	if req.Filter.LabelSelector["io.kubernetes.pod.uid"] != "uid" || req.Filter.State.State != cri.PodSandboxState_SANDBOX_READY {
		return &cri.ListPodSandboxResponse{}, nil
	}
	return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{{Id: "old", CreatedAt: 1}, {Id: "sandbox", CreatedAt: 3}, {Id: "older", CreatedAt: 0}}}, nil
}

// echo is a runtime whose commands say who they are and repeat their input.
type echo struct{}

func (echo) Exec(_ context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, _ <-chan streamcommand.TerminalSize) error {
	fmt.Fprintf(out, "exec %q in %s, tty %v\n", cmd, id, tty)
	if in != nil {
		io.Copy(out, in)
	}
	if errOut != nil {
		fmt.Fprint(errOut, "complaint")
	}
	return nil
}

func (e echo) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, sizes <-chan streamcommand.TerminalSize) error {
	return e.Exec(ctx, id, []string{"attach"}, in, out, errOut, tty, sizes)
}

func (echo) PortForward(_ context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	fmt.Fprintf(stream, "port %d of %s\n", port, id)
	io.Copy(stream, stream)
	return stream.Close()
}

// streamServer serves the API in front of a streaming server as runtimes have it, and gives its URL.
func streamServer(t *testing.T) string {
	t.Helper()
	cfg, _, r := config(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	streamConfig := streaming.DefaultConfig
	streamConfig.Addr = l.Addr().String()
	behind, err := streaming.NewServer(streamConfig, echo{})
	if err != nil {
		t.Fatal(err)
	}
	runtime := &http.Server{Handler: behind}
	go runtime.Serve(l)
	t.Cleanup(func() { runtime.Close() })
	r.streaming = behind
	s := httptest.NewServer(server(t, cfg).Handler())
	t.Cleanup(s.Close)
	return s.URL
}

func TestExecAndAttach(t *testing.T) {
	base := streamServer(t)
	for name, connect := range map[string]func(at string) (remotecommand.Executor, error){
		"spdy": func(at string) (remotecommand.Executor, error) {
			u, err := url.Parse(at)
			if err != nil {
				return nil, err
			}
			return remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
		},
		"websocket": func(at string) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, http.MethodGet, at, "v4.channel.k8s.io")
		},
	} {
		for _, tt := range []struct {
			path, stdin string
			tty         bool
			out, errOut string
		}{
			{path: "/exec/ns/p/c?command=a&command=b+c&output=1&error=1", out: "exec [\"a\" \"b c\"] in now, tty false\n", errOut: "complaint"},
			{path: "/exec/ns/p/uid/c?command=a&output=1&tty=1", tty: true, out: "exec [\"a\"] in now, tty true\n"},
			{path: "/attach/ns/p/c?output=1&error=1", out: "exec [\"attach\"] in now, tty false\n", errOut: "complaint"},
			{path: "/exec/ns/p/c?command=a&input=1&output=1&error=1", stdin: "hello", out: "exec [\"a\"] in now, tty false\nhello", errOut: "complaint"},
		} {
			if name == "websocket" && tt.stdin != "" {
				continue // v4 of the protocol cannot end the input
			}
			t.Run(name+" "+tt.path, func(t *testing.T) {
				e, err := connect(base + tt.path)
				if err != nil {
					t.Fatal(err)
				}
				var out, errOut bytes.Buffer
				o := remotecommand.StreamOptions{Stdout: &out, Tty: tt.tty}
				if tt.errOut != "" {
					o.Stderr = &errOut
				}
				if tt.stdin != "" {
					o.Stdin = strings.NewReader(tt.stdin)
				}
				if err := e.StreamWithContext(t.Context(), o); err != nil {
					t.Fatal(err)
				}
				if out.String() != tt.out || errOut.String() != tt.errOut {
					t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
				}
			})
		}
	}
}

func TestStreamsThatCannotBe(t *testing.T) {
	base := streamServer(t)
	for _, tt := range []struct {
		path string
		code int
		part string
	}{
		{"/exec/ns/p/w?command=a&output=1", 404, `container not found ("w")`},
		{"/exec/ns/q/c?command=a&output=1", 404, "pod does not exist"},
		{"/exec/ns/p/c?command=busy&output=1", 429, "too many"},
		{"/exec/ns/p/c?command=a&output=1", 400, "Upgrade request required"},
		{"/attach/ns/p/c", 400, "at least 1 of stdin"},
		{"/portForward/ns/p/other", 404, "pod does not exist"},
	} {
		resp, err := http.Post(base+tt.path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.code || !strings.Contains(string(body), tt.part) {
			t.Errorf("%s: %d %s", tt.path, resp.StatusCode, body)
		}
	}
}

func TestPortForward(t *testing.T) {
	u, err := url.Parse(streamServer(t) + "/portForward/ns/p")
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u),
		[]string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "ping")
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "port 8080 of sandbox\nping" {
		t.Errorf("%q, %v", got, err)
	}
	conn.Close()
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
