package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func hook(handler v1.LifecycleHandler) Hook {
	return Hook{
		Pod:       &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u"}},
		Container: &v1.Container{Name: "c"}, ContainerID: "id", PodIP: "127.0.0.1", Handler: &handler,
	}
}

// recorder is a runner whose commands exit as cmd[0] says and whose events are kept.
func recorder(t *testing.T) (*Runner, *[]string) {
	t.Helper()
	var events []string
	return New(Config{
		Exec: func(_ context.Context, id string, cmd []string, timeout time.Duration) ([]byte, int, error) {
			if id != "id" || timeout != 0 {
				t.Errorf("exec in %q with timeout %s", id, timeout)
			}
			if cmd[0] == "broken" {
				return []byte("half"), 0, errors.New("no such container")
			}
			code, err := strconv.Atoi(cmd[0])
			return []byte("said"), code, err
		},
		Event: func(_ *v1.Pod, eventType, reason, message string) {
			events = append(events, eventType+" "+reason+" "+message)
		},
		Log: slog.New(slog.DiscardHandler),
	}), &events
}

func TestExec(t *testing.T) {
	r, _ := recorder(t)
	for _, tt := range []struct{ cmd, message string }{
		{"0", ""},
		{"3", `Exec lifecycle hook ([3]) for Container "c" in Pod "p_ns(u)" failed - error: command '3' exited with 3: said, message: "said"`},
		{"broken", `Exec lifecycle hook ([broken]) for Container "c" in Pod "p_ns(u)" failed - error: no such container, message: "half"`},
	} {
		message, err := r.Run(t.Context(), hook(v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{tt.cmd}}}))
		if message != tt.message || (err == nil) != (tt.message == "") {
			t.Errorf("%s: %q, %v; want %q", tt.cmd, message, err, tt.message)
		}
	}
}

func TestNoHandler(t *testing.T) {
	r, _ := recorder(t)
	message, err := r.Run(t.Context(), hook(v1.LifecycleHandler{TCPSocket: &v1.TCPSocketAction{}}))
	if err == nil || !strings.HasPrefix(message, "Cannot run handler: ") {
		t.Errorf("a tcpSocket hook: %q, %v", message, err)
	}
}

func TestSleep(t *testing.T) {
	for _, tt := range []struct {
		limit, took time.Duration
		ok          bool
	}{
		{time.Minute, 7 * time.Second, true},
		{3 * time.Second, 3 * time.Second, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			r, _ := recorder(t)
			ctx, cancel := context.WithTimeout(t.Context(), tt.limit)
			defer cancel()
			begin := time.Now()
			message, err := r.Run(ctx, hook(v1.LifecycleHandler{Sleep: &v1.SleepAction{Seconds: 7}}))
			if took := time.Since(begin); took != tt.took || (err == nil) != tt.ok || (message == "") != tt.ok {
				t.Errorf("limit %s: took %s, %q, %v", tt.limit, took, message, err)
			}
		})
	}
}

func get(t *testing.T, raw, path, scheme string) v1.LifecycleHandler {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(u.Host)
	return v1.LifecycleHandler{HTTPGet: &v1.HTTPGetAction{
		Path: path, Port: intstr.Parse(port), Scheme: v1.URIScheme(scheme),
		HTTPHeaders: []v1.HTTPHeader{{Name: "Authorization", Value: "secret"}},
	}}
}

func TestHTTP(t *testing.T) {
	var seen []string
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		seen = append(seen, req.URL.Path+" "+req.UserAgent()+" "+req.Header.Get("Authorization"))
		if req.URL.Path == "/bad" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	fellBack := "Warning LifecycleHTTPFallback request to HTTPS lifecycle hook " + plain.Listener.Addr().String() +
		" got HTTP response, retry with HTTP succeeded"
	for _, tt := range []struct {
		name, url, path, scheme string
		seen, events            []string
	}{
		{"http", plain.URL, "/a", "", []string{"/a kube-lifecycle/1.37 secret"}, nil},
		{"any status is an answer", plain.URL, "/bad", "HTTP", []string{"/bad kube-lifecycle/1.37 secret"}, nil},
		{"certificates are not verified", secure.URL, "/b", "HTTPS", []string{"/b kube-lifecycle/1.37 secret"}, nil},
		{"no TLS there, and no secret in the clear", plain.URL, "/c", "HTTPS", []string{"/c kube-lifecycle/1.37 "}, []string{fellBack}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen = nil
			r, events := recorder(t)
			if message, err := r.Run(t.Context(), hook(get(t, tt.url, tt.path, tt.scheme))); err != nil || message != "" {
				t.Errorf("%q, %v", message, err)
			}
			if !slices.Equal(seen, tt.seen) || !slices.Equal(*events, tt.events) {
				t.Errorf("requests %q, events %q", seen, *events)
			}
		})
	}
}

func TestHTTPFails(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	r, _ := recorder(t)
	message, err := r.Run(t.Context(), hook(get(t, gone.URL, "/x", "")))
	if err == nil || !strings.HasPrefix(message, `HTTP lifecycle hook (/x) for Container "c" in Pod "p_ns(u)" failed - error: `) {
		t.Errorf("nobody listens: %q, %v", message, err)
	}
	h := hook(get(t, gone.URL, "/x", ""))
	h.PodIP = ""
	if _, err := r.Run(t.Context(), h); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("a pod without an address: %v", err)
	}
}
