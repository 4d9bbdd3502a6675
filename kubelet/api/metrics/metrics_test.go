package metrics

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestOperationNames(t *testing.T) {
	for method, want := range map[string]string{
		cri.RuntimeService_RunPodSandbox_FullMethodName:    "run_podsandbox",
		cri.RuntimeService_PodSandboxStatus_FullMethodName: "podsandbox_status",
		cri.RuntimeService_ListContainers_FullMethodName:   "list_containers",
		cri.RuntimeService_ExecSync_FullMethodName:         "exec_sync",
		cri.RuntimeService_Version_FullMethodName:          "version",
		cri.ImageService_PullImage_FullMethodName:          "pull_image",
	} {
		if got := operationOf(method); got != want {
			t.Errorf("%s is %s, want %s", method, got, want)
		}
	}
}

func TestMetrics(t *testing.T) {
	m := New("n", func() []*v1.Pod {
		state := func(s v1.ContainerState) v1.ContainerStatus { return v1.ContainerStatus{State: s} }
		return []*v1.Pod{
			{Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{
				state(v1.ContainerState{Running: &v1.ContainerStateRunning{}}), state(v1.ContainerState{Terminated: &v1.ContainerStateTerminated{}})}}},
			{Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{state(v1.ContainerState{Waiting: &v1.ContainerStateWaiting{}})}}},
		}
	})
	m.PodStarted(150 * time.Millisecond)
	m.PodWorked("sync", time.Millisecond)
	m.Listed(time.Millisecond)
	m.Listed(time.Millisecond)
	m.Request("GET", "pods", "readonly", false)
	m.Shutdown(time.Unix(1, 0), time.Time{})
	failure := errors.New("down")
	for _, want := range []error{nil, failure} {
		call := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return want }
		if err := m.Interceptor()(t.Context(), cri.RuntimeService_ExecSync_FullMethodName, nil, nil, nil, call); err != want {
			t.Errorf("the interceptor returns %v", err)
		}
	}
	w := httptest.NewRecorder()
	promhttp.HandlerFor(m, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		"kubelet_pod_start_duration_seconds_bucket{le=\"0.2\"} 1\n",
		"kubelet_pleg_relist_duration_seconds_count 2\n",
		"kubelet_pleg_relist_interval_seconds_count 1\n",
		"kubelet_graceful_shutdown_start_time_seconds 1\n",
		"kubelet_graceful_shutdown_end_time_seconds 0\n",
		"kubelet_pod_worker_duration_seconds_count{operation_type=\"sync\"} 1\n",
		"kubelet_runtime_operations_total{operation_type=\"exec_sync\"} 2\n",
		"kubelet_runtime_operations_errors_total{operation_type=\"exec_sync\"} 1\n",
		"kubelet_runtime_operations_duration_seconds_count{operation_type=\"exec_sync\"} 2\n",
		"kubelet_http_requests_total{long_running=\"false\",method=\"GET\",path=\"pods\",server_type=\"readonly\"} 1\n",
		"kubelet_running_pods 1\n",
		"kubelet_running_containers{container_state=\"running\"} 1\n",
		"kubelet_running_containers{container_state=\"exited\"} 1\n",
		"kubelet_node_name{node=\"n\"} 1\n",
		"go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %q", want)
		}
	}
}
