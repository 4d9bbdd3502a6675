package probe

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/orlop/orlop/kubelet/probe/check"
)

var probeTotal = prometheus.NewDesc("prober_probe_total",
	"Attempts of probes by container and result.",
	[]string{"probe_type", "result", "container", "pod", "namespace", "pod_uid"}, nil)

// countNames are the values of the label "result" in the order of slot.counts.
var countNames = [...]string{"successful", "failed", "unknown"}

func (m *Manager) countAttempt(s *slot, result check.Result, err error) {
	i := 2
	switch {
	case err != nil:
		return // kubelet counts only what has a result
	case result == check.Success || result == check.Warning:
		i = 0
	case result == check.Failure:
		i = 1
	}
	m.mu.Lock()
	s.counts[i]++
	m.mu.Unlock()
}

// Describe makes a Manager a prometheus.Collector.
func (m *Manager) Describe(out chan<- *prometheus.Desc) { out <- probeTotal }

// Collect reads the counters of the pods that are there.
func (m *Manager) Collect(out chan<- prometheus.Metric) {
	for _, metric := range m.metrics() { // not under mu: the reader may be slow
		out <- metric
	}
}

func (m *Manager) metrics() []prometheus.Metric {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []prometheus.Metric
	for uid, pp := range m.pods {
		for key, s := range pp.slots {
			for i, n := range s.counts {
				if n > 0 {
					all = append(all, prometheus.MustNewConstMetric(probeTotal, prometheus.CounterValue, float64(n),
						key.kind.String(), countNames[i], key.container, pp.pod.Name, pp.pod.Namespace, string(uid)))
				}
			}
		}
	}
	return all
}
