package stats

import (
	"context"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	api "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/pod"
)

// Cadvisor collects the metrics of /metrics/cadvisor: those of the runtime where it has them (KEP-2371), and else the
// main ones, made of its stats.
func (p *Provider) Cadvisor() prometheus.Collector { return cadvisorCollector{p} }

type cadvisorCollector struct{ p *Provider }

// Describe sends nothing: the runtime says which metrics there are.
func (c cadvisorCollector) Describe(chan<- *prometheus.Desc) {}

func (c cadvisorCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), measureTime)
	defer cancel()
	c.p.machine(sink(out))
	err := c.p.runtimeMetrics(ctx, sink(out))
	if status.Code(err) == codes.Unimplemented {
		err = c.p.ownMetrics(ctx, sink(out))
	}
	if err != nil {
		c.p.cfg.Log.Warn("no metrics of containers", "err", err)
	}
}

var machineLabels = []string{"boot_id", "machine_id", "system_uuid"}

var (
	machineCores  = prometheus.NewDesc("machine_cpu_cores", "Logical CPUs of the machine.", machineLabels, nil)
	machineMemory = prometheus.NewDesc("machine_memory_bytes", "Memory of the machine, in bytes.", machineLabels, nil)
)

func (p *Provider) machine(out sink) {
	labels := make([]string, 0, len(machineLabels))
	bootID := filepath.Join(p.cfg.Proc, "sys/kernel/random/boot_id")
	for _, path := range []string{bootID, "/etc/machine-id", "/sys/class/dmi/id/product_uuid"} {
		text, _ := os.ReadFile(path) // not every machine has each of them
		labels = append(labels, strings.TrimSpace(string(text)))
	}
	out.now(machineCores, float64(goruntime.NumCPU()), labels...)
	if meminfo, err := p.meminfo(); err == nil {
		out.now(machineMemory, float64(meminfo["MemTotal"]), labels...)
	}
}

// runtimeMetrics passes on what the runtime measures.
func (p *Provider) runtimeMetrics(ctx context.Context, out sink) error {
	descriptors, err := p.cfg.Runtime.ListMetricDescriptors(ctx, &cri.ListMetricDescriptorsRequest{})
	if err != nil {
		return err
	}
	descs := map[string]metricDesc{}
	for _, d := range descriptors.Descriptors {
		descs[d.Name] = metricDesc{prometheus.NewDesc(d.Name, d.Help, d.LabelKeys, nil), len(d.LabelKeys)}
	}
	if len(descs) == 0 {
		return status.Error(codes.Unimplemented, "the runtime has no metrics")
	}
	reply, err := p.cfg.Runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
	if err != nil {
		return err
	}
	for _, s := range reply.PodMetrics {
		out.metrics(descs, s.Metrics)
		for _, c := range s.ContainerMetrics {
			out.metrics(descs, c.Metrics)
		}
	}
	return nil
}

type metricDesc struct {
	desc   *prometheus.Desc
	labels int
}

// metrics leaves out what does not fit its description: one bad metric would spoil the whole scrape.
func (out sink) metrics(descs map[string]metricDesc, list []*cri.Metric) {
	for _, m := range list {
		d, ok := descs[m.Name]
		if !ok || d.labels != len(m.LabelValues) {
			continue
		}
		kind := prometheus.GaugeValue
		if m.MetricType == cri.MetricType_COUNTER {
			kind = prometheus.CounterValue
		}
		metric, err := prometheus.NewConstMetric(d.desc, kind, float64(m.GetValue().GetValue()), m.LabelValues...)
		if err != nil {
			continue
		}
		if m.Timestamp != 0 {
			metric = prometheus.NewMetricWithTimestamp(time.Unix(0, m.Timestamp), metric)
		}
		out <- metric
	}
}

// containerLabels are those that cAdvisor gives to metrics of containers. Those of pods have no container.
var containerLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

func ownDesc(name, help string, more ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append(containerLabels[:len(containerLabels):len(containerLabels)], more...), nil)
}

var (
	ownCPU     = ownDesc("container_cpu_usage_seconds_total", "CPU time used, in seconds of one core.", "cpu")
	ownUsage   = ownDesc("container_memory_usage_bytes", "Memory in use, caches included, in bytes.")
	ownWorking = ownDesc("container_memory_working_set_bytes", "Memory that cannot be done without, in bytes.")
	ownRSS     = ownDesc("container_memory_rss", "Anonymous memory, in bytes.")
	ownFs      = ownDesc("container_fs_usage_bytes", "Size of the writable layer, in bytes.", "device")
	ownStart   = ownDesc("container_start_time_seconds", "When the container was started, in seconds since 1970.")
	ownRx      = ownDesc("container_network_receive_bytes_total", "Bytes received.", "interface")
	ownTx      = ownDesc("container_network_transmit_bytes_total", "Bytes sent.", "interface")
	ownRxErr   = ownDesc("container_network_receive_errors_total", "Errors while receiving.", "interface")
	ownTxErr   = ownDesc("container_network_transmit_errors_total", "Errors while sending.", "interface")
)

func (p *Provider) ownMetrics(ctx context.Context, out sink) error {
	s, err := p.Summary(ctx)
	if err != nil {
		return err
	}
	known := map[string]*v1.Pod{}
	for _, k := range p.cfg.Pods() {
		known[string(pod.UID(k))] = k
	}
	for i := range s.Pods {
		out.ownPod(&s.Pods[i], known[s.Pods[i].PodRef.UID])
	}
	return nil
}

func (out sink) ownPod(s *api.PodStats, known *v1.Pod) {
	labels := func(container, image, id string, more ...string) []string {
		return append([]string{container, id, image, id, s.PodRef.Namespace, s.PodRef.Name}, more...)
	}
	out.cpu(ownCPU, s.CPU, labels("", "", "", "total")...)
	out.memory(ownWorking, s.Memory, labels("", "", "")...)
	if s.Network != nil {
		for _, i := range s.Network.Interfaces {
			l := labels("", "", "", i.Name)
			out.count(ownRx, i.RxBytes, l)
			out.count(ownTx, i.TxBytes, l)
			out.count(ownRxErr, i.RxErrors, l)
			out.count(ownTxErr, i.TxErrors, l)
		}
	}
	for _, c := range s.Containers {
		image, id := imageAndID(known, c.Name)
		l := labels(c.Name, image, id)
		out.cpu(ownCPU, c.CPU, labels(c.Name, image, id, "total")...)
		out.memory(ownWorking, c.Memory, l...)
		if c.Memory != nil {
			out.gauge(ownUsage, c.Memory.UsageBytes, l)
			out.gauge(ownRSS, c.Memory.RSSBytes, l)
		}
		if c.Rootfs != nil {
			out.gauge(ownFs, c.Rootfs.UsedBytes, labels(c.Name, image, id, ""))
		}
		if !c.StartTime.IsZero() {
			out.now(ownStart, float64(c.StartTime.Unix()), l...)
		}
	}
}

func imageAndID(p *v1.Pod, container string) (image, id string) {
	if p == nil {
		return "", ""
	}
	cs := pod.ContainerStatus(&p.Status, container)
	if cs == nil {
		return "", ""
	}
	_, id, _ = strings.Cut(cs.ContainerID, "://")
	return cs.Image, id
}

func (out sink) gauge(desc *prometheus.Desc, v *uint64, labels []string) {
	if v != nil {
		out.now(desc, float64(*v), labels...)
	}
}

func (out sink) count(desc *prometheus.Desc, v *uint64, labels []string) {
	if v != nil {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(*v), labels...)
	}
}
