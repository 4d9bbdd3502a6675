package metrics

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/model"
)

// served is each sample that /metrics serves of kubeproxy's, with its labels, and its value.
func served(t *testing.T, m *Metrics) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("/metrics: %d", w.Code)
	}
	out := map[string]string{}
	for line := range strings.Lines(w.Body.String()) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(name, "kubeproxy_") && !strings.Contains(name, "_bucket{") {
			out[strings.TrimPrefix(name, "kubeproxy_")] = value
		}
	}
	return out
}

// kubeProxys are metrics of kube-proxy 1.37, with their types.
var kubeProxys = map[string]string{
	"sync_proxy_rules_duration_seconds": "histogram", "sync_full_proxy_rules_duration_seconds": "histogram",
	"sync_partial_proxy_rules_duration_seconds": "histogram", "network_programming_duration_seconds": "histogram",
	"sync_proxy_rules_last_timestamp_seconds": "gauge", "sync_proxy_rules_last_queued_timestamp_seconds": "gauge",
	"sync_proxy_rules_service_changes_total": "counter", "sync_proxy_rules_endpoint_changes_total": "counter",
	"sync_proxy_rules_no_local_endpoints_total": "gauge", "proxy_healthz_total": "counter", "proxy_livez_total": "counter",
	"sync_proxy_rules_service_changes_pending": "gauge", "sync_proxy_rules_endpoint_changes_pending": "gauge",
	"conntrack_reconciler_sync_duration_seconds": "histogram", "conntrack_reconciler_deleted_entries_total": "counter",
}

var both = model.Network{Families: []model.Family{model.IPv4, model.IPv6}}

// Dashboards for kube-proxy find what they look for.
func TestNames(t *testing.T) {
	failures := map[string]string{
		"nftables": "sync_proxy_rules_nftables_sync_failures_total", "iptables": "sync_proxy_rules_iptables_restore_failures_total",
		"ipvs": "sync_proxy_rules_ipvs_sync_failures_total", // kube-proxy counts none in this mode
	}
	for mode, failure := range failures {
		m := New(mode)
		m.Answered("/healthz", 200)
		m.Answered("/livez", 200)
		m.Cleaned(model.IPv4, time.Millisecond, 1)
		m.Synced(proxy.Sync{Network: both})
		families, err := m.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		want := maps.Clone(kubeProxys)
		want[failure] = "counter"
		if mode == "iptables" {
			want[partialFailures] = "counter"
		}
		got := map[string]string{}
		for _, f := range families {
			if name, ours := strings.CutPrefix(f.GetName(), "kubeproxy_"); ours {
				got[name] = strings.ToLower(f.GetType().String())
				if f.GetHelp() == "" {
					t.Errorf("%s is not explained", name)
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("mode %s: %v, want %v", mode, got, want)
		}
	}
}

// Go's and the process's own are there as well.
func TestOwnProcess(t *testing.T) {
	w := httptest.NewRecorder()
	New("nftables").Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{"go_goroutines ", "process_resident_memory_bytes "} {
		if !strings.Contains(w.Body.String(), "\n"+want) {
			t.Errorf("no %s", want)
		}
	}
}

func TestValues(t *testing.T) {
	m := New("nftables")
	now := time.Unix(1000, 0)
	m.Pending(now)
	m.Synced(proxy.Sync{Full: true, Network: both, Began: now, Ended: now.Add(2 * time.Second)})
	m.Synced(proxy.Sync{Began: now, Ended: now.Add(time.Second), Triggers: []time.Time{now.Add(-time.Second), now}})
	m.Synced(proxy.Sync{Err: errors.New("no"), Began: now, Ended: now.Add(time.Hour)})
	m.Answered("/healthz", 503)
	m.Answered("/healthz", 200)
	m.Answered("/livez", 200)
	m.Cleaned(model.IPv6, time.Second, 3)
	got := served(t, m)
	for name, want := range map[string]string{
		"sync_proxy_rules_duration_seconds_count":                                               "2", // what failed is counted as that alone
		"sync_proxy_rules_duration_seconds_sum":                                                 "3",
		"sync_full_proxy_rules_duration_seconds_sum":                                            "2",
		"sync_partial_proxy_rules_duration_seconds_sum":                                         "1",
		"network_programming_duration_seconds_count":                                            "2",
		"network_programming_duration_seconds_sum":                                              "3",
		"sync_proxy_rules_last_timestamp_seconds":                                               "1001",
		"sync_proxy_rules_last_queued_timestamp_seconds":                                        "1000",
		"sync_proxy_rules_nftables_sync_failures_total":                                         "1",
		`proxy_healthz_total{code="503"}`:                                                       "1",
		`proxy_healthz_total{code="200"}`:                                                       "1",
		`proxy_livez_total{code="200"}`:                                                         "1",
		`conntrack_reconciler_sync_duration_seconds_sum{ip_family="IPv6"}`:                      "1",
		`conntrack_reconciler_deleted_entries_total{ip_family="IPv6"}`:                          "3",
		`sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"}`: "0",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %s; there are %v", name, got[name], want, slices.Sorted(maps.Keys(got)))
		}
	}
}

// portOf is a port whose ClusterIP and NodePort treat packets from outside so.
func portOf(n int, internal, external model.Action, endpoints ...string) *model.Port {
	p := &model.Port{Key: model.PortKey{Service: model.Name{Namespace: "ns", Name: fmt.Sprint("svc-", n)}, Protocol: model.TCP, Family: model.IPv4}}
	p.Frontends = []model.Frontend{{Kind: model.ClusterIP}, {Kind: model.NodePort}}
	p.Frontends[0].Routes[model.FromOutside].Action = internal
	p.Frontends[1].Routes[model.FromOutside].Action = external
	for _, e := range endpoints {
		p.Cluster = append(p.Cluster, model.Endpoint{Addr: netip.MustParseAddrPort(e)})
	}
	return p
}

func TestChanges(t *testing.T) {
	m := New("nftables")
	good, bad := portOf(1, model.Balance, model.Balance), portOf(1, model.Drop, model.Drop)
	other := portOf(2, model.Balance, model.Drop)
	smaller := portOf(1, model.Balance, model.Balance, "10.0.0.1:80")
	smaller.Frontends = smaller.Frontends[:1]
	for i, step := range []struct {
		change                                  model.Change
		services, endpoints, internal, external int
	}{
		{model.Change{New: good}, 1, 0, 0, 0},
		{model.Change{Old: good, New: bad}, 1, 1, 1, 1}, // its only endpoint here is gone
		{model.Change{New: other}, 2, 1, 1, 2},
		{model.Change{Old: bad, New: good}, 2, 2, 0, 1},
		{model.Change{Old: good, New: smaller}, 3, 2, 0, 1},
		{model.Change{Old: other}, 4, 2, 0, 0},
	} {
		m.Synced(proxy.Sync{Network: both, Changes: []model.Change{step.change}})
		got := served(t, m)
		for name, want := range map[string]int{
			"sync_proxy_rules_service_changes_total": step.services, "sync_proxy_rules_endpoint_changes_total": step.endpoints,
			`sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"}`: step.internal,
			`sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"}`: step.external,
		} {
			if got[name] != fmt.Sprint(want) {
				t.Errorf("step %d: %s is %s, want %d", i, name, got[name], want)
			}
		}
	}
}

// What failed is pending until it has not.
func TestPending(t *testing.T) {
	m := New("iptables")
	change := model.Change{Old: portOf(1, model.Balance, model.Balance), New: portOf(1, model.Drop, model.Drop)}
	for _, step := range []struct {
		sync                                 proxy.Sync
		services, endpoints, partialFailures int
	}{
		{proxy.Sync{Changes: []model.Change{{New: change.Old}, change}, Err: errors.New("no")}, 1, 1, 1},
		{proxy.Sync{Full: true, Changes: []model.Change{change}, Err: errors.New("no")}, 0, 1, 1},
		{proxy.Sync{Full: true, Changes: []model.Change{change}}, 0, 0, 1},
	} {
		m.Synced(step.sync)
		got := served(t, m)
		for name, want := range map[string]int{
			"sync_proxy_rules_service_changes_pending": step.services, "sync_proxy_rules_endpoint_changes_pending": step.endpoints,
			partialFailures: step.partialFailures,
		} {
			if got[name] != fmt.Sprint(want) {
				t.Errorf("%s is %s, want %d", name, got[name], want)
			}
		}
	}
}
