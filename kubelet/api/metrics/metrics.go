// Package metrics holds what the kubelet counts of itself, under the names that kubelet has, so that dashboards and
// alerts work unchanged.
package metrics

import (
	"context"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
)

// Metrics is what /metrics shows.
type Metrics struct {
	*prometheus.Registry
	podStart   prometheus.Histogram
	podWorker  *prometheus.HistogramVec
	list       prometheus.Histogram
	interval   prometheus.Histogram
	listedAt   atomic.Int64 // nanoseconds since 1970; 0 before the first time
	operations *prometheus.CounterVec
	failures   *prometheus.CounterVec
	durations  *prometheus.HistogramVec
	requests   *prometheus.CounterVec

	shutdownBegin, shutdownEnd prometheus.Gauge
}

// New makes the metrics of a node. pods is asked at each scrape.
func New(node string, pods func() []*v1.Pod) *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		podStart: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kubelet_pod_start_duration_seconds", Help: "Seconds from when a pod was first seen until its containers ran.",
			Buckets: []float64{0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600},
		}),
		podWorker: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kubelet_pod_worker_duration_seconds", Help: "Seconds that one pass over one pod took, by kind of pass.",
			Buckets: prometheus.DefBuckets,
		}, []string{"operation_type"}),
		list: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kubelet_pleg_relist_duration_seconds", Help: "Seconds that listing all pods of the runtime took.", Buckets: prometheus.DefBuckets,
		}),
		interval: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kubelet_pleg_relist_interval_seconds", Help: "Seconds between two lists of all pods of the runtime.", Buckets: prometheus.DefBuckets,
		}),
		operations: counters("kubelet_runtime_operations_total", "Calls of the runtime, by operation.", "operation_type"),
		failures:   counters("kubelet_runtime_operations_errors_total", "Calls of the runtime that failed, by operation.", "operation_type"),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kubelet_runtime_operations_duration_seconds", Help: "Seconds that calls of the runtime took, by operation.",
			Buckets: prometheus.ExponentialBuckets(.005, 2.5, 14),
		}, []string{"operation_type"}),
		requests: counters("kubelet_http_requests_total", "Requests to the kubelet's API.", "method", "path", "server_type", "long_running"),

		shutdownBegin: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kubelet_graceful_shutdown_start_time_seconds", Help: "When pods began to end for the last shutdown of the machine, in seconds since 1970.",
		}),
		shutdownEnd: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kubelet_graceful_shutdown_end_time_seconds", Help: "When pods had ended for the last shutdown of the machine, in seconds since 1970.",
		}),
	}
	nodeName := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kubelet_node_name", Help: "The name of the node. The value is always 1.", ConstLabels: prometheus.Labels{"node": node},
	})
	nodeName.Set(1)
	m.MustRegister(m.podStart, m.podWorker, m.list, m.interval, m.operations, m.failures, m.durations, m.requests, nodeName, running{pods},
		m.shutdownBegin, m.shutdownEnd,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// PodStarted counts a pod whose containers run, took after it was first seen.
func (m *Metrics) PodStarted(took time.Duration) { m.podStart.Observe(took.Seconds()) }

// PodWorked counts one pass over a pod. kubelet's operations are "create", "update", "sync" and "kill".
func (m *Metrics) PodWorked(operation string, took time.Duration) {
	m.podWorker.WithLabelValues(operation).Observe(took.Seconds())
}

// Listed counts one list of all pods of the runtime.
func (m *Metrics) Listed(took time.Duration) {
	m.list.Observe(took.Seconds())
	now := time.Now().UnixNano()
	if last := m.listedAt.Swap(now); last != 0 {
		m.interval.Observe(time.Duration(now - last).Seconds())
	}
}

// Request counts a request to the API. root is the first part of the path, serverType "readwrite" or "readonly".
func (m *Metrics) Request(method, root, serverType string, longRunning bool) {
	long := "false"
	if longRunning {
		long = "true"
	}
	m.requests.WithLabelValues(method, root, serverType, long).Inc()
}

// Shutdown tells when the pods of the node were ended; zero times are 0.
func (m *Metrics) Shutdown(begin, end time.Time) {
	m.shutdownBegin.Set(seconds(begin))
	m.shutdownEnd.Set(seconds(end))
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

// Interceptor counts the calls of a connection to the runtime.
func (m *Metrics) Interceptor() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		operation := operationOf(method)
		begin := time.Now()
		err := call(ctx, method, req, reply, conn, opts...)
		m.operations.WithLabelValues(operation).Inc()
		m.durations.WithLabelValues(operation).Observe(time.Since(begin).Seconds())
		if err != nil {
			m.failures.WithLabelValues(operation).Inc()
		}
		return err
	}
}

// operationOf is kubelet's name of a method: RunPodSandbox is run_podsandbox, ListContainers list_containers.
func operationOf(method string) string {
	name := strings.ReplaceAll(path.Base(method), "PodSandbox", "Podsandbox")
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// running counts pods and containers when it is scraped.
type running struct{ pods func() []*v1.Pod }

var (
	runningPods       = prometheus.NewDesc("kubelet_running_pods", "Pods of which a container runs.", nil, nil)
	runningContainers = prometheus.NewDesc("kubelet_running_containers", "Containers by their state.", []string{"container_state"}, nil)
)

func (r running) Describe(out chan<- *prometheus.Desc) {
	out <- runningPods
	out <- runningContainers
}

func (r running) Collect(out chan<- prometheus.Metric) {
	pods, states := 0, map[string]int{}
	for _, p := range r.pods() {
		runs := false
		for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses) {
			switch {
			case c.State.Running != nil:
				states["running"]++
				runs = true
			case c.State.Terminated != nil:
				states["exited"]++
			}
		}
		if runs {
			pods++
		}
	}
	out <- prometheus.MustNewConstMetric(runningPods, prometheus.GaugeValue, float64(pods))
	for state, n := range states {
		out <- prometheus.MustNewConstMetric(runningContainers, prometheus.GaugeValue, float64(n), state)
	}
}
