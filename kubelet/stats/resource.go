package stats

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	api "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The metrics of /metrics/resource, which metrics-server reads.
var (
	ofPod       = []string{"pod", "namespace"}
	ofContainer = []string{"container", "pod", "namespace"}

	nodeCPU             = newDesc("node_cpu_usage_seconds_total", "CPU time that the node has used, in seconds of one core.")
	nodeMemory          = newDesc("node_memory_working_set_bytes", "Memory that the node cannot do without, in bytes.")
	nodeSwap            = newDesc("node_swap_usage_bytes", "Swap that the node uses, in bytes.")
	containerCPU        = newDesc("container_cpu_usage_seconds_total", "CPU time that the container has used, in seconds of one core.", ofContainer...)
	containerMemory     = newDesc("container_memory_working_set_bytes", "Memory that the container cannot do without, in bytes.", ofContainer...)
	containerSwap       = newDesc("container_swap_usage_bytes", "Swap that the container uses, in bytes.", ofContainer...)
	containerStart      = newDesc("container_start_time_seconds", "When the container was started, in seconds since 1970.", ofContainer...)
	podCPU              = newDesc("pod_cpu_usage_seconds_total", "CPU time that the pod has used, in seconds of one core.", ofPod...)
	podMemory           = newDesc("pod_memory_working_set_bytes", "Memory that the pod cannot do without, in bytes.", ofPod...)
	podSwap             = newDesc("pod_swap_usage_bytes", "Swap that the pod uses, in bytes.", ofPod...)
	scrapeError         = newDesc("scrape_error", "1 if this scrape could not measure containers, else 0.")
	resourceScrapeError = newDesc("resource_scrape_error", "1 if this scrape could not measure containers, else 0.")
)

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Resource collects the metrics of /metrics/resource.
func (p *Provider) Resource() prometheus.Collector { return resourceCollector{p} }

type resourceCollector struct{ p *Provider }

// Describe sends nothing: which metrics there are depends on what runs.
func (c resourceCollector) Describe(chan<- *prometheus.Desc) {}

func (c resourceCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), measureTime)
	defer cancel()
	failed := 0.0
	s, err := c.p.Summary(ctx)
	if err != nil {
		c.p.cfg.Log.Warn("no metrics of resources", "err", err)
		failed = 1
	} else {
		collectResources(sink(out), s)
	}
	sink(out).now(scrapeError, failed)
	sink(out).now(resourceScrapeError, failed)
}

func collectResources(out sink, s *api.Summary) {
	out.cpu(nodeCPU, s.Node.CPU)
	out.memory(nodeMemory, s.Node.Memory)
	out.swap(nodeSwap, s.Node.Swap)
	for _, pod := range s.Pods {
		name := []string{pod.PodRef.Name, pod.PodRef.Namespace}
		for _, c := range pod.Containers {
			labels := append([]string{c.Name}, name...)
			out.cpu(containerCPU, c.CPU, labels...)
			out.memory(containerMemory, c.Memory, labels...)
			out.swap(containerSwap, c.Swap, labels...)
			if !c.StartTime.IsZero() {
				out.now(containerStart, float64(c.StartTime.UnixNano())/1e9, labels...)
			}
		}
		out.cpu(podCPU, pod.CPU, name...)
		out.memory(podMemory, pod.Memory, name...)
		out.swap(podSwap, pod.Swap, name...)
	}
}

// sink makes metrics of what was measured, with the time at which it was: metrics-server computes rates by it.
type sink chan<- prometheus.Metric

func (out sink) now(desc *prometheus.Desc, v float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
}

func (out sink) at(t metav1.Time, m prometheus.Metric) {
	out <- prometheus.NewMetricWithTimestamp(t.Time, m)
}

func (out sink) cpu(desc *prometheus.Desc, c *api.CPUStats, labels ...string) {
	if c != nil && c.UsageCoreNanoSeconds != nil {
		out.at(c.Time, prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(*c.UsageCoreNanoSeconds)/1e9, labels...))
	}
}

func (out sink) memory(desc *prometheus.Desc, m *api.MemoryStats, labels ...string) {
	if m != nil && m.WorkingSetBytes != nil {
		out.at(m.Time, prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(*m.WorkingSetBytes), labels...))
	}
}

func (out sink) swap(desc *prometheus.Desc, s *api.SwapStats, labels ...string) {
	if s != nil && s.SwapUsageBytes != nil {
		out.at(s.Time, prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(*s.SwapUsageBytes), labels...))
	}
}
