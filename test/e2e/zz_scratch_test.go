package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/api"
	"github.com/orlop/orlop/kubelet/api/metrics"
	"github.com/orlop/orlop/kubelet/logs"
	"github.com/orlop/orlop/kubelet/stats"
	"github.com/orlop/orlop/test/criclient"
)

type lines struct {
	t    *testing.T
	n    atomic.Int64
	rest []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if want := fmt.Sprint("line ", l.n.Load()+1); string(line) != want {
			l.t.Errorf("got %q want %q", line, want)
			var n int64
			fmt.Sscanf(string(line), "line %d", &n)
			l.n.Store(n)
		} else {
			l.n.Add(1)
		}
		l.rest = rest
	}
}

type hst struct{ p *v1.Pod }

func (h hst) Pods() []*v1.Pod               { return []*v1.Pod{h.p} }
func (h hst) PodByName(a, b string) *v1.Pod { return h.p }
func (h hst) Healthy() error                { return nil }

func TestScratch(t *testing.T) {
	lab := map[string]string{"io.kubernetes.pod.uid": "uu", "io.kubernetes.pod.name": "pp", "io.kubernetes.pod.namespace": "nn"}
	pod := node.Pod(t, func(p *cri.PodSandboxConfig) { p.Labels = lab })
	clab := map[string]string{"io.kubernetes.container.name": "c"}
	for k, v := range lab {
		clab[k] = v
	}
	ctr := pod.Container(t, probe, criclient.Shell("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); echo line $i; done; sleep 2"), func(c *cri.ContainerConfig) { c.Labels = clab })
	path := filepath.Join(pod.Config.LogDirectory, ctr.Config.LogPath)
	rt := node.Runtime
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	rot, err := logs.NewRotator(logs.RotatorConfig{MaxBytes: 200000, MaxFiles: 100, Period: 50 * time.Millisecond, Workers: 1, Log: log,
		Running: func(context.Context) ([]logs.Container, error) { return []logs.Container{{ID: ctr.ID, Path: path}}, nil },
		Reopen: func(ctx context.Context, id string) error {
			_, err := rt.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
			return err
		}})
	if err != nil {
		t.Fatal(err)
	}
	got := &lines{t: t}
	ended := make(chan struct{})
	var isEnded atomic.Bool
	go func() { ctr.WaitExit(t); isEnded.Store(true); close(ended) }()
	done := make(chan error, 1)
	go func() {
		done <- logs.Read(t.Context(), path, logs.Options{Stdout: got, Follow: true, Ended: isEnded.Load})
	}()
	ctx, cancel := context.WithCancel(t.Context())
	go rot.Run(ctx)

	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uu", Name: "pp", Namespace: "nn"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c"}}},
		Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{{Name: "c", ContainerID: "orlop://" + ctr.ID, State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.Now()}}}}}}
	st := stats.New(stats.Config{Node: "n", Runtime: rt, Images: node.Image, Pods: func() []*v1.Pod { return []*v1.Pod{p} }, RootDir: "/", Log: log})
	st.Summary(t.Context())
	time.Sleep(1100 * time.Millisecond)
	sum, err := st.Summary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(sum)
	t.Logf("%s", b)
	s, err := api.New(api.Config{Host: hst{p}, Runtime: rt, Stats: st, Metrics: metrics.New("n", func() []*v1.Pod { return nil }), Probes: prometheus.NewGauge(prometheus.GaugeOpts{Name: "x"}), Debugging: true, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()
	for _, q := range []string{"spdy", "ws5", "ws4"} {
		var e remotecommand.Executor
		at := srv.URL + "/exec/nn/pp/c?command=echo&command=hi&output=1&error=1"
		switch q {
		case "spdy":
			u, _ := url.Parse(at)
			e, err = remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
		case "ws5":
			e, err = remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", at)
		case "ws4":
			e, err = remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, "GET", at, "v4.channel.k8s.io")
		}
		if err != nil {
			t.Fatal(err)
		}
		var out, eo bytes.Buffer
		if err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &eo}); err != nil || out.String() != "hi\n" {
			t.Errorf("%s: %q %v", q, out.String(), err)
		}
	}
	<-ended
	if err := <-done; err != nil {
		t.Error(err)
	}
	cancel()
	f, _ := logs.Files(path)
	t.Logf("%d lines, %d files", got.n.Load(), len(f))
}
