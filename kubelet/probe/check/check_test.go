package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var target = Target{Container: &v1.Container{Name: "c"}, ContainerID: "id", PodIP: "127.0.0.1"}

// once makes one attempt and compares its result; want is a part of the output.
func once(t *testing.T, p *Prober, spec *v1.Probe, to Target, result Result, want string) {
	t.Helper()
	got, output, err := p.Once(t.Context(), spec, to)
	if err != nil {
		output = err.Error()
	}
	if got != result || (err != nil) != (result == Unknown) || !strings.Contains(output, want) {
		t.Errorf("%s, output %q, error %v; want %s with %q", got, output, err, result, want)
	}
}

func portOf(t *testing.T, rawURL string) int {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func httpProbe(port int, action v1.HTTPGetAction) *v1.Probe {
	action.Port = intstr.FromInt(port)
	return &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &action}, TimeoutSeconds: 1}
}

// site answers as its paths say: /status/NNN, /echo/HEADER, /to?URL, /loop, /hang, /long.
func site(w http.ResponseWriter, req *http.Request) {
	_, arg, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/"), "/")
	switch {
	case strings.HasPrefix(req.URL.Path, "/status/"):
		code, _ := strconv.Atoi(arg)
		w.WriteHeader(code)
		fmt.Fprint(w, "body")
	case strings.HasPrefix(req.URL.Path, "/echo/Host"):
		fmt.Fprint(w, req.Host)
	case strings.HasPrefix(req.URL.Path, "/echo/"):
		fmt.Fprintf(w, "%q", req.Header[arg])
	case req.URL.Path == "/to":
		http.Redirect(w, req, req.URL.RawQuery, http.StatusFound)
	case req.URL.Path == "/loop":
		http.Redirect(w, req, "/loop", http.StatusFound)
	case req.URL.Path == "/hang":
		<-req.Context().Done()
	case req.URL.Path == "/long":
		fmt.Fprint(w, strings.Repeat("x", maxOutputBytes)+"cut")
	}
}

func TestHTTPResults(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(site))
	defer server.Close()
	other := httptest.NewServer(http.HandlerFunc(site))
	defer other.Close()
	for _, tt := range []struct {
		path   string
		result Result
		want   string
	}{
		{"/status/200", Success, "body"},
		{"status/204?a=b", Success, ""}, // a path without its slash
		{"/status/304", Warning, "Probe terminated redirects, Response body: "},
		{"/status/399", Warning, "Probe terminated redirects, Response body: body"},
		{"/status/400", Failure, "HTTP probe failed with statuscode: 400"},
		{"/status/500", Failure, "HTTP probe failed with statuscode: 500"},
		{"/to?/status/200", Success, "body"},
		{"/to?/status/500", Failure, "statuscode: 500"},
		{"/to?" + other.URL + "/status/200", Success, "body"}, // another port is the same host
		{"/to?http://other.example/", Warning, "Probe terminated redirects"},
		{"/loop", Failure, "stopped after 10 redirects"},
		{"/hang", Failure, "Client.Timeout exceeded"},
		{"/echo/User-Agent", Success, `["kube-probe/1.37"]`},
		{"/echo/Accept", Success, `["*/*"]`},
		{"/echo/Accept-Encoding", Success, `[]`},
		{"/echo/Connection", Success, `["close"]`},
		{"/echo/Host", Success, server.Listener.Addr().String()},
	} {
		t.Run(tt.path, func(t *testing.T) {
			once(t, &Prober{}, httpProbe(portOf(t, server.URL), v1.HTTPGetAction{Path: tt.path}), target, tt.result, tt.want)
		})
	}
	_, output, _ := (&Prober{}).Once(t.Context(), httpProbe(portOf(t, server.URL), v1.HTTPGetAction{Path: "/long"}), target)
	if len(output) != maxOutputBytes {
		t.Errorf("kept %d bytes of a long answer", len(output))
	}
	_, output, _ = (&Prober{}).Once(t.Context(), httpProbe(portOf(t, server.URL), v1.HTTPGetAction{Path: "/status/500"}), target)
	if strings.Contains(output, "body") {
		t.Errorf("the answer of the pod is in %q, which everybody may read", output)
	}
}

func TestHTTPHeaders(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(site))
	defer server.Close()
	for _, tt := range []struct{ header, value, echo, want string }{
		{"User-Agent", "mine/1", "User-Agent", `["mine/1"]`},
		{"Accept", "text/html", "Accept", `["text/html"]`},
		{"accept", "", "Accept", `[]`},
		{"X-Other", "v", "X-Other", `["v"]`},
		{"Host", "name.example", "Host", "name.example"},
	} {
		t.Run(tt.header+" "+tt.value, func(t *testing.T) {
			once(t, &Prober{}, httpProbe(portOf(t, server.URL), v1.HTTPGetAction{
				Path: "/echo/" + tt.echo, HTTPHeaders: []v1.HTTPHeader{{Name: tt.header, Value: tt.value}},
			}), target, Success, tt.want)
		})
	}
	t.Run("the Host header stays after a redirect", func(t *testing.T) {
		once(t, &Prober{}, httpProbe(portOf(t, server.URL), v1.HTTPGetAction{
			Path: "/to?/echo/Host", HTTPHeaders: []v1.HTTPHeader{{Name: "Host", Value: "name.example"}},
		}), target, Success, "name.example")
	})
}

func TestHTTPTransports(t *testing.T) {
	proto := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { fmt.Fprint(w, req.Proto) })
	plain := httptest.NewUnstartedServer(proto)
	plain.Config.Protocols = new(http.Protocols)
	plain.Config.Protocols.SetHTTP1(true)
	plain.Config.Protocols.SetUnencryptedHTTP2(true)
	plain.Start()
	defer plain.Close()
	secure := httptest.NewUnstartedServer(proto)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()

	http2 := v1.HTTPProtocolHTTP2
	once(t, &Prober{}, httpProbe(portOf(t, plain.URL), v1.HTTPGetAction{}), target, Success, "HTTP/1.1")
	once(t, &Prober{}, httpProbe(portOf(t, plain.URL), v1.HTTPGetAction{Protocol: &http2}), target, Success, "HTTP/2.0")
	once(t, &Prober{}, httpProbe(portOf(t, secure.URL), v1.HTTPGetAction{Scheme: v1.URISchemeHTTPS}), target, Success, "HTTP/2.0")
	once(t, &Prober{}, httpProbe(portOf(t, secure.URL), v1.HTTPGetAction{Scheme: v1.URISchemeHTTP}), target, Failure, "400")
}

func TestHTTPIgnoresProxies(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(site))
	defer server.Close()
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	once(t, &Prober{}, httpProbe(portOf(t, server.URL), v1.HTTPGetAction{Host: "localhost", Path: "/status/200"}), target, Success, "")
}

func TestPorts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := l.Addr().(*net.TCPAddr).Port
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	named := target
	named.Container = &v1.Container{Name: "c", Ports: []v1.ContainerPort{{Name: "web", ContainerPort: int32(open)}}}
	nowhere := named
	nowhere.PodIP = "192.0.2.1"
	for _, tt := range []struct {
		name   string
		action v1.TCPSocketAction
		to     Target
		result Result
		want   string
	}{
		{"number", v1.TCPSocketAction{Port: intstr.FromInt(open)}, named, Success, ""},
		{"name", v1.TCPSocketAction{Port: intstr.FromString("web")}, named, Success, ""},
		{"host", v1.TCPSocketAction{Port: intstr.FromString("web"), Host: "localhost"}, nowhere, Success, ""},
		{"unknown name", v1.TCPSocketAction{Port: intstr.FromString("db")}, named, Unknown, `port "db" not found`},
		{"a number in quotes is a name", v1.TCPSocketAction{Port: intstr.FromString("80")}, named, Unknown, `port "80" not found`},
		{"out of range", v1.TCPSocketAction{Port: intstr.FromInt(70000)}, named, Unknown, "invalid port number: 70000"},
		{"closed", v1.TCPSocketAction{Port: intstr.FromInt(closed.Addr().(*net.TCPAddr).Port)}, named, Failure, "connection refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			once(t, &Prober{}, &v1.Probe{ProbeHandler: v1.ProbeHandler{TCPSocket: &tt.action}}, tt.to, tt.result, tt.want)
		})
	}
}

func TestExec(t *testing.T) {
	p := &Prober{Exec: func(_ context.Context, id string, cmd []string, timeout time.Duration) ([]byte, int, error) {
		if id != "id" || timeout != 2*time.Second {
			t.Errorf("exec in %q for %s", id, timeout)
		}
		switch cmd[0] {
		case "fail":
			return []byte("why"), 1, nil
		case "slow":
			return nil, 0, status.Error(codes.DeadlineExceeded, "exec timeout")
		case "slower":
			return nil, 0, fmt.Errorf("exec: %w", context.DeadlineExceeded)
		case "broken":
			return nil, 0, errors.New("runtime is down")
		case "long":
			return []byte(strings.Repeat("x", maxOutputBytes+1)), 0, nil
		}
		return []byte(strings.Join(cmd, " ")), 0, nil
	}}
	to := target
	to.Container = &v1.Container{Name: "c", Env: []v1.EnvVar{
		{Name: "A", Value: "first"}, {Name: "A", Value: "last"}, {Name: "B", ValueFrom: &v1.EnvVarSource{}},
	}}
	for _, tt := range []struct {
		cmd    string
		result Result
		want   string
	}{
		{"echo $(A) [$(B)] $(C) $$(A)", Success, "echo last [] $(C) $(A)"},
		{"fail", Failure, "why"},
		{"slow down", Failure, `command timed out: "slow down" timed out after 2s`},
		{"slower", Failure, `command timed out: "slower" timed out after 2s`},
		{"broken", Unknown, "runtime is down"},
		{"long", Success, strings.Repeat("x", maxOutputBytes)},
	} {
		t.Run(tt.cmd, func(t *testing.T) {
			once(t, p, &v1.Probe{TimeoutSeconds: 2, ProbeHandler: v1.ProbeHandler{
				Exec: &v1.ExecAction{Command: strings.Split(tt.cmd, " ")}}}, to, tt.result, tt.want)
		})
	}
	once(t, p, &v1.Probe{}, to, Unknown, "no handler")
}

func TestGRPC(t *testing.T) {
	serve := func(register func(*grpc.Server)) int32 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		go s.Serve(l)
		t.Cleanup(s.Stop)
		return int32(l.Addr().(*net.TCPAddr).Port)
	}
	h := health.NewServer()
	h.SetServingStatus("up", grpc_health_v1.HealthCheckResponse_SERVING)
	h.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	healthy := serve(func(s *grpc.Server) { grpc_health_v1.RegisterHealthServer(s, h) })
	without := serve(func(*grpc.Server) {})
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	mute := int32(silent.Addr().(*net.TCPAddr).Port)
	tls := v1.GRPCProbeModeTLS
	for _, tt := range []struct {
		name    string
		port    int32
		service *string
		mode    *v1.GRPCProbeMode
		result  Result
		want    string
	}{
		{"the server as a whole", healthy, nil, nil, Success, "service healthy"},
		{"a service", healthy, new("up"), nil, Success, "service healthy"},
		{"a service that is down", healthy, new("down"), nil, Failure, `service unhealthy (responded with "NOT_SERVING")`},
		{"no such service", healthy, new("else"), nil, Failure, "error: health rpc probe failed"},
		{"no health protocol", without, nil, nil, Failure, "does not implement the grpc health protocol"},
		{"nothing comes back", mute, nil, nil, Failure, "timeout: failed to connect service"},
		{"no TLS there", healthy, nil, &tls, Failure, "timeout: failed to connect service"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			once(t, &Prober{}, &v1.Probe{TimeoutSeconds: 1, ProbeHandler: v1.ProbeHandler{
				GRPC: &v1.GRPCAction{Port: tt.port, Service: tt.service, Mode: tt.mode}}}, target, tt.result, tt.want)
		})
	}
}

func TestNeedsIP(t *testing.T) {
	for _, tt := range []struct {
		handler v1.ProbeHandler
		want    bool
	}{
		{v1.ProbeHandler{Exec: &v1.ExecAction{}}, false},
		{v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{}}, true},
		{v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Host: "h"}}, false},
		{v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{}}, true},
		{v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Host: "h"}}, false},
		{v1.ProbeHandler{GRPC: &v1.GRPCAction{}}, true},
	} {
		if got := NeedsIP(&v1.Probe{ProbeHandler: tt.handler}); got != tt.want {
			t.Errorf("NeedsIP(%v) = %v", tt.handler, got)
		}
	}
}
