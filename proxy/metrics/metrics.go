// Package metrics counts what the proxy does, under the names that kube-proxy's dashboards know where the meaning is the
// same.
package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/model"
)

// Metrics is a proxy.Observer. Both families are set in one transaction, so that there is no label for the family but
// where something differs by it.
type Metrics struct {
	registry                                   *prometheus.Registry
	sync, full, partial, programming           prometheus.Histogram
	lastSync, lastQueued                       prometheus.Gauge
	serviceChanges, endpointChanges            prometheus.Counter
	servicesPending, endpointsPending          prometheus.Gauge
	failures, partialFailures                  prometheus.Counter // the latter of mode iptables only
	noLocal                                    *prometheus.GaugeVec
	healthz, livez                             *prometheus.CounterVec
	conntrackDuration                          *prometheus.HistogramVec
	conntrackDeleted                           *prometheus.CounterVec
	withoutLocalInternal, withoutLocalExternal map[model.PortKey]bool
}

// partialFailures is kube-proxy's name in mode iptables for changes that failed, after which all rules are set.
const partialFailures = "sync_proxy_rules_iptables_partial_restore_failures_total"

// durations are buckets from a tenth of a millisecond on: most changes take less than one.
func durations() []float64 { return prometheus.ExponentialBuckets(0.0001, 2, 20) }

// New makes the metrics of a mode.
func New(mode string) *Metrics {
	name := func(n string) string { return "kubeproxy_" + n }
	histogram := func(n, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name(n), Help: help, Buckets: durations()})
	}
	gauge := func(n, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name(n), Help: help})
	}
	counter := func(n, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name(n), Help: help})
	}
	counters := func(n, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(n), Help: help}, []string{label})
	}
	failures := map[string]string{
		"nftables": "sync_proxy_rules_nftables_sync_failures_total", "iptables": "sync_proxy_rules_iptables_restore_failures_total",
		"ipvs": "sync_proxy_rules_ipvs_sync_failures_total",
	}
	m := &Metrics{
		registry:         prometheus.NewRegistry(),
		sync:             histogram("sync_proxy_rules_duration_seconds", "Time that setting rules took."),
		full:             histogram("sync_full_proxy_rules_duration_seconds", "Time that setting all rules took."),
		partial:          histogram("sync_partial_proxy_rules_duration_seconds", "Time that setting changes took."),
		programming:      histogram("network_programming_duration_seconds", "Time from a change of Pods or Services to the rules that follow from it."),
		lastSync:         gauge("sync_proxy_rules_last_timestamp_seconds", "When rules were set last."),
		lastQueued:       gauge("sync_proxy_rules_last_queued_timestamp_seconds", "When there was last something to set."),
		serviceChanges:   counter("sync_proxy_rules_service_changes_total", "Changes of ports of Services other than their endpoints."),
		endpointChanges:  counter("sync_proxy_rules_endpoint_changes_total", "Changes of endpoints of ports of Services."),
		servicesPending:  gauge("sync_proxy_rules_service_changes_pending", "Changes of ports of Services that the rules do not have yet, as setting them failed."),
		endpointsPending: gauge("sync_proxy_rules_endpoint_changes_pending", "Changes of endpoints that the rules do not have yet, as setting them failed."),
		partialFailures:  counter(partialFailures, "Attempts to set changes of rules that failed."),
		failures:         counter(failures[mode], "Attempts to set rules that failed."),
		noLocal: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name("sync_proxy_rules_no_local_endpoints_total"),
			Help: "Ports of Services with a policy of Local and no endpoint on this node."}, []string{"traffic_policy", "ip_family"}),
		healthz: counters("proxy_healthz_total", "Answers of /healthz.", "code"),
		livez:   counters("proxy_livez_total", "Answers of /livez.", "code"),
		conntrackDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name("conntrack_reconciler_sync_duration_seconds"),
			Help: "Time that forgetting UDP flows took.", Buckets: durations()}, []string{"ip_family"}),
		conntrackDeleted:     counters("conntrack_reconciler_deleted_entries_total", "UDP flows that were forgotten.", "ip_family"),
		withoutLocalInternal: map[model.PortKey]bool{}, withoutLocalExternal: map[model.PortKey]bool{},
	}
	m.registry.MustRegister(m.sync, m.full, m.partial, m.programming, m.lastSync, m.lastQueued, m.serviceChanges, m.endpointChanges,
		m.servicesPending, m.endpointsPending, m.failures, m.noLocal, m.healthz, m.livez, m.conntrackDuration, m.conntrackDeleted,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, family := range []model.Family{model.IPv4, model.IPv6} { // there from the start, so that a rate can be told of the first
		m.conntrackDuration.WithLabelValues(family.String())
		m.conntrackDeleted.WithLabelValues(family.String())
	}
	if mode == "iptables" {
		m.registry.MustRegister(m.partialFailures)
	}
	return m
}

// Handler serves /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// Answered counts an answer of /healthz or /livez.
func (m *Metrics) Answered(path string, code int) {
	vec := m.healthz
	if path == "/livez" {
		vec = m.livez
	}
	vec.WithLabelValues(strconv.Itoa(code)).Inc()
}

// Cleaned counts what connection tracking forgot.
func (m *Metrics) Cleaned(family model.Family, took time.Duration, forgotten int) {
	m.conntrackDuration.WithLabelValues(family.String()).Observe(took.Seconds())
	m.conntrackDeleted.WithLabelValues(family.String()).Add(float64(forgotten))
}

// Pending is of proxy.Observer.
func (m *Metrics) Pending(at time.Time) { m.lastQueued.Set(seconds(at)) }

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / float64(time.Second) }

// Synced is of proxy.Observer.
func (m *Metrics) Synced(s proxy.Sync) {
	m.pending(s)
	if s.Err != nil {
		m.failures.Inc()
		if !s.Full {
			m.partialFailures.Inc()
		}
		return
	}
	took := s.Ended.Sub(s.Began).Seconds()
	m.sync.Observe(took)
	if s.Full {
		m.full.Observe(took)
	} else {
		m.partial.Observe(took)
	}
	m.lastSync.Set(seconds(s.Ended))
	for _, at := range s.Triggers {
		m.programming.Observe(s.Ended.Sub(at).Seconds())
	}
	for _, c := range s.Changes {
		m.count(c)
	}
	for _, family := range s.Network.Families {
		m.noLocal.WithLabelValues("internal", family.String()).Set(of(m.withoutLocalInternal, family))
		m.noLocal.WithLabelValues("external", family.String()).Set(of(m.withoutLocalExternal, family))
	}
}

func of(ports map[model.PortKey]bool, family model.Family) float64 {
	n := 0
	for key := range ports {
		if key.Family == family {
			n++
		}
	}
	return float64(n)
}

// pending counts what is to be tried again.
func (m *Metrics) pending(s proxy.Sync) {
	services, endpoints := 0, 0
	if s.Err != nil {
		for _, c := range s.Changes {
			if ofService(c) {
				services++
			} else {
				endpoints++
			}
		}
	}
	m.servicesPending.Set(float64(services))
	m.endpointsPending.Set(float64(endpoints))
}

// ofService is false for a change of endpoints alone.
func ofService(c model.Change) bool {
	return c.Old == nil || c.New == nil || len(c.Old.Frontends) != len(c.New.Frontends)
}

func (m *Metrics) count(c model.Change) {
	if ofService(c) {
		m.serviceChanges.Inc()
	} else {
		m.endpointChanges.Inc()
	}
	delete(m.withoutLocalInternal, c.Key())
	delete(m.withoutLocalExternal, c.Key())
	if c.New == nil {
		return
	}
	for _, f := range c.New.Frontends {
		if f.Routes[model.FromOutside].Action != model.Drop {
			continue
		}
		if f.Kind == model.ClusterIP {
			m.withoutLocalInternal[c.Key()] = true
		} else {
			m.withoutLocalExternal[c.Key()] = true
		}
	}
}
