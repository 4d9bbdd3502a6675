package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/api/metrics"
)

// host has one pod, ns/p, with the containers "c", which runs and ran before, and "w", which waits.
type host struct {
	mu      sync.Mutex
	pod     *v1.Pod
	more    []*v1.Pod
	changed chan struct{}
	err     error
}

func newHost() *host {
	running := v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.Now()}}
	return &host{changed: make(chan struct{}), pod: &v1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "uid"},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "c"}, {Name: "w"}}},
		Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{
			{Name: "c", ContainerID: "cri://now", State: running,
				LastTerminationState: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ContainerID: "cri://before"}}},
			{Name: "w", State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ContainerCreating"}}},
		}},
	}}
}

func (h *host) Pods() []*v1.Pod {
	pods := []*v1.Pod{h.PodByName("ns", "p")}
	h.mu.Lock()
	defer h.mu.Unlock()
	return append(pods, h.more...)
}

func (h *host) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

// change changes the pods of the node.
func (h *host) change(do func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	do()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *host) PodByName(namespace, name string) *v1.Pod {
	h.mu.Lock()
	defer h.mu.Unlock()
	if namespace != "ns" || name != "p" {
		return nil
	}
	return h.pod.DeepCopy()
}

func (h *host) Healthy() error { return h.err }

// end ends the container c.
func (h *host) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pod.Status.ContainerStatuses[0].State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ContainerID: "cri://now"}}
}

// fakeRuntime answers what the API asks a runtime for. Logs of the container ID lie at logs/ID.log.
type fakeRuntime struct {
	cri.RuntimeServiceClient
	logs      string
	streaming streamingURLs // of stream_test.go
}

func (f *fakeRuntime) ContainerStatus(_ context.Context, req *cri.ContainerStatusRequest, _ ...grpc.CallOption) (*cri.ContainerStatusResponse, error) {
	path := filepath.Join(f.logs, req.ContainerId+".log")
	if _, err := os.Stat(path); err != nil {
		return nil, status.Error(codes.NotFound, req.ContainerId)
	}
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{LogPath: path}}, nil
}

func (f *fakeRuntime) ListContainers(context.Context, *cri.ListContainersRequest, ...grpc.CallOption) (*cri.ListContainersResponse, error) {
	labels := map[string]string{"io.kubernetes.pod.uid": "uid", "io.kubernetes.pod.name": "p", "io.kubernetes.pod.namespace": "ns", "io.kubernetes.container.name": "c"}
	return &cri.ListContainersResponse{Containers: []*cri.Container{
		{Id: "now", Labels: labels, Image: &cri.ImageSpec{Image: "img"}}, {Id: "of somebody else"},
	}}, nil
}

func (f *fakeRuntime) ExecSync(_ context.Context, req *cri.ExecSyncRequest, _ ...grpc.CallOption) (*cri.ExecSyncResponse, error) {
	if req.Cmd[0] == "fail" {
		return &cri.ExecSyncResponse{ExitCode: 2, Stderr: []byte("why")}, nil
	}
	return &cri.ExecSyncResponse{Stdout: []byte(strings.Join(req.Cmd, "+") + " in " + req.ContainerId)}, nil
}

type fakeStats struct{ err error }

func (f fakeStats) Summary(context.Context) (*stats.Summary, error) {
	n := uint64(1)
	return &stats.Summary{Node: stats.NodeStats{NodeName: "n", Fs: &stats.FsStats{UsedBytes: &n}},
		Pods: []stats.PodStats{{PodRef: stats.PodReference{Name: "p"}, Containers: []stats.ContainerStats{{Name: "c", Rootfs: &stats.FsStats{UsedBytes: &n}}}}}}, f.err
}

func gauge(name string) prometheus.Collector {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name})
}

func (fakeStats) Resource() prometheus.Collector { return gauge("of_resources") }
func (fakeStats) Cadvisor() prometheus.Collector { return gauge("of_containers") }

// config is that of a server for the pod of newHost.
func config(t *testing.T) (Config, *host, *fakeRuntime) {
	t.Helper()
	h, r := newHost(), &fakeRuntime{logs: t.TempDir()}
	return Config{
		Host: h, Runtime: r, Stats: fakeStats{}, Metrics: metrics.New("n", h.Pods), Probes: gauge("of_probes"),
		Configz: func() any { return map[string]string{"kind": "KubeletConfiguration"} }, Debugging: true,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, h, r
}

func server(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ask(h http.Handler, method, path string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestPaths(t *testing.T) {
	cfg, _, _ := config(t)
	cfg.SystemLogs = t.TempDir()
	if err := os.WriteFile(filepath.Join(cfg.SystemLogs, "messages"), []byte("boot"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(cfg.SystemLogs, "link")); err != nil {
		t.Fatal(err)
	}
	all := server(t, cfg)
	cfg.SystemLogs, cfg.Debugging = "", false
	few := server(t, cfg)
	cfg.Debugging = true
	some := server(t, cfg)
	for _, tt := range []struct {
		name         string
		h            http.Handler
		method, path string
		code         int
		part         string
	}{
		{"", all.Handler(), "GET", "/healthz", 200, "ok"},
		{"", all.Handler(), "GET", "/healthz/ping", 200, "ok"},
		{"", all.Handler(), "GET", "/healthz/syncloop", 200, "ok"},
		{"", all.Handler(), "GET", "/pods", 200, `{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[{"metadata":{"name":"p"`},
		{"", all.Handler(), "POST", "/pods", 405, ""},
		{"", all.Handler(), "GET", "/runningpods/", 200, `"containers":[{"name":"c","image":"img"`},
		{"", all.Handler(), "GET", "/stats/summary", 200, `"fs":`},
		{"", all.Handler(), "GET", "/metrics", 200, `kubelet_node_name{node="n"} 1`},
		{"", all.Handler(), "GET", "/metrics", 200, `kubelet_running_pods 1`},
		{"", all.Handler(), "GET", "/metrics", 200, `kubelet_running_containers{container_state="running"} 1`},
		{"", all.Handler(), "GET", "/metrics", 200, `process_cpu_seconds_total`},
		{"", all.Handler(), "GET", "/metrics", 200, `kubelet_http_requests_total{long_running="false",method="GET",path="healthz",server_type="readwrite"} 3`},
		{"", all.Handler(), "GET", "/metrics/resource", 200, "of_resources"},
		{"", all.Handler(), "GET", "/metrics/cadvisor", 200, "of_containers"},
		{"", all.Handler(), "GET", "/metrics/probes", 200, "of_probes"},
		{"", all.Handler(), "GET", "/configz", 200, `{"kubeletconfig":{"kind":"KubeletConfiguration"}}`},
		{"", all.Handler(), "POST", "/checkpoint/ns/p/c", 501, "not supported"},
		{"", all.Handler(), "GET", "/logs/messages", 200, "boot"},
		{"a link leads nowhere", all.Handler(), "GET", "/logs/link", 500, ""},
		{"", all.Handler(), "GET", "/debug/pprof/", 405, "profiling endpoint is disabled."},
		{"", all.Handler(), "POST", "/run/ns/p/c?cmd=a%20b", 200, "a+b in now"},
		{"", all.Handler(), "POST", "/run/ns/p/uid/c?cmd=a", 200, "a in now"},
		{"", all.Handler(), "POST", "/run/ns/p/other/c?cmd=a", 404, "pod does not exist"},
		{"", all.Handler(), "POST", "/run/ns/p/w?cmd=a", 404, `container not found ("w")`},
		{"", all.Handler(), "POST", "/run/ns/p/c?cmd=fail", 500, "command 'fail' exited with 2: why"},
		{"", all.Handler(), "POST", "/exec/ns/p/c?command=a", 400, "at least 1 of stdin, stdout, stderr"},
		{"", all.Handler(), "GET", "/nowhere", 404, ""},
		{"without system logs", some.Handler(), "GET", "/logs/messages", 405, "logs endpoint is disabled."},
		{"without debugging", few.Handler(), "GET", "/containerLogs/ns/p/c", 405, "Debug endpoints are disabled."},
		{"without debugging", few.Handler(), "POST", "/exec/ns/p/c", 405, "Debug endpoints are disabled."},
		{"without debugging", few.Handler(), "GET", "/pods", 200, "PodList"},
		{"read-only", all.ReadOnly(), "GET", "/pods", 200, "PodList"},
		{"read-only", all.ReadOnly(), "GET", "/stats/summary", 200, "nodeName"},
		{"read-only", all.ReadOnly(), "POST", "/run/ns/p/c?cmd=a", 404, ""},
		{"read-only", all.ReadOnly(), "GET", "/containerLogs/ns/p/c", 404, ""},
		{"health", all.Health(), "GET", "/healthz", 200, "ok"},
		{"health", all.Health(), "GET", "/pods", 404, ""},
	} {
		t.Run(tt.name+" "+tt.method+" "+tt.path, func(t *testing.T) {
			code, body := ask(tt.h, tt.method, tt.path)
			if code != tt.code || !strings.Contains(body, tt.part) {
				t.Errorf("%d %s", code, body)
			}
		})
	}
}

func TestUnhealthy(t *testing.T) {
	cfg, h, _ := config(t)
	h.err = errors.New("nobody syncs")
	all := server(t, cfg).Handler()
	if code, body := ask(all, "GET", "/healthz"); code != 500 || !strings.Contains(body, "[-]syncloop failed: nobody syncs") {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := ask(all, "GET", "/healthz/ping"); code != 200 {
		t.Errorf("ping: %d", code)
	}
}

func TestSummaryOfCPUAndMemory(t *testing.T) {
	cfg, _, _ := config(t)
	_, body := ask(server(t, cfg).Handler(), "GET", "/stats/summary?only_cpu_and_memory=true")
	var got stats.Summary
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	want := stats.Summary{Node: stats.NodeStats{NodeName: "n"},
		Pods: []stats.PodStats{{PodRef: stats.PodReference{Name: "p"}, Containers: []stats.ContainerStats{{Name: "c"}}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	cfg.Stats = fakeStats{errors.New("no runtime")}
	if code, _ := ask(server(t, cfg).Handler(), "GET", "/stats/summary"); code != 500 {
		t.Errorf("without a runtime: %d", code)
	}
}

// TestServe: a real server over TLS, and what it does when it ends while a log is followed.
func TestServe(t *testing.T) {
	cfg, _, r := config(t)
	writeLog(t, r, "now", "one")
	pki := newPKI(t)
	tlsConfig, err := TLS(TLSOptions{MinVersion: "VersionTLS13", GetCertificate: pki.serving})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := server(t, cfg)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, s.Handler(), tlsConfig) }()

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pki.pool}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + l.Addr().String() + "/containerLogs/ns/p/c?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	line := make([]byte, 4)
	if _, err := io.ReadFull(resp.Body, line); err != nil || string(line) != "one\n" {
		t.Fatalf("%q %v", line, err)
	}
	if resp.TLS.Version != tls.VersionTLS13 {
		t.Errorf("TLS version %x", resp.TLS.Version)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the server does not end")
	}
	if rest, _ := io.ReadAll(resp.Body); len(rest) != 0 {
		t.Errorf("after the end: %q", rest)
	}
}

func TestTLSOptions(t *testing.T) {
	for _, tt := range []struct {
		o    TLSOptions
		fail string
	}{
		{TLSOptions{}, ""},
		{TLSOptions{MinVersion: "VersionTLS12", CipherSuites: []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}}, ""},
		{TLSOptions{MinVersion: "VersionTLS10"}, "no longer safe"},
		{TLSOptions{MinVersion: "1.2"}, "unknown"},
		{TLSOptions{CipherSuites: []string{"TLS_RSA_WITH_RC4_128_SHA"}}, "unknown or not safe"},
	} {
		_, err := TLS(tt.o)
		if (err == nil) != (tt.fail == "") || (err != nil && !strings.Contains(err.Error(), tt.fail)) {
			t.Errorf("%+v: %v", tt.o, err)
		}
	}
}
