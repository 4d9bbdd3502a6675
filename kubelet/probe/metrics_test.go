package probe

import (
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	v1 "k8s.io/api/core/v1"
)

// scrape is what Prometheus would read.
func scrape(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	return w.Body.String()
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, v1.Container{ReadinessProbe: every(10)})
		defer r.m.Close()
		r.answer = failUntil(200 * time.Millisecond)
		r.runs("1")
		r.pass()
		r.advance(11 * time.Second)
		want := `# HELP prober_probe_total Attempts of probes by container and result.
# TYPE prober_probe_total counter
prober_probe_total{container="c",namespace="ns",pod="p",pod_uid="u",probe_type="Readiness",result="failed"} 3
prober_probe_total{container="c",namespace="ns",pod="p",pod_uid="u",probe_type="Readiness",result="successful"} 2
`
		if diff := cmp.Diff(want, scrape(t, r.m)); diff != "" {
			t.Error(diff)
		}
		r.m.Remove("u")
		if left := scrape(t, r.m); left != "" {
			t.Errorf("metrics of a pod that is gone: %s", left)
		}
	})
}
