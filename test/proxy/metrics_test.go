package proxy

import (
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"

	"github.com/orlop/orlop/internal/kube/kubetest"
	"github.com/orlop/orlop/test/kernel"
)

// unmeasured are metrics of kube-proxy that ours has not, and why.
var unmeasured = map[string]string{
	"sync_proxy_rules_iptables_total":                     "rules are not counted",
	"sync_proxy_rules_iptables_last":                      "rules are not counted",
	"sync_proxy_rules_nftables_cleanup_failures_total":    "chains without use are tried again with each change",
	"iptables_ct_state_invalid_dropped_packets_total":     "packets are not counted, which takes a module (nfacct) that few kernels have",
	"iptables_localhost_nodeports_accepted_packets_total": "packets are not counted, which takes a module (nfacct) that few kernels have",
}

// TestKubeProxyTells compares what the real kube-proxy tells of itself: names of metrics, and events. Set ORLOP_TEST_PEERS=1.
func TestKubeProxyTells(t *testing.T) {
	kernel.Require(t, kernel.Root)
	if os.Getenv("ORLOP_TEST_PEERS") == "" {
		t.Skip("set ORLOP_TEST_PEERS=1 to compare with the real kube-proxy")
	}
	n := network(t)
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			theirs, ours := n.told(t, peers, mode), n.told(t, ours, mode)
			for name := range theirs {
				if why := unmeasured[strings.TrimPrefix(name, "kubeproxy_")]; !ours[name] && why == "" {
					t.Errorf("only kube-proxy has %s", name)
				}
			}
			for name := range ours {
				if !theirs[name] && strings.HasPrefix(name, "event ") { // of metrics kube-proxy shows some when they first count
					t.Errorf("only ours sends %s", name)
				}
			}
			t.Logf("kube-proxy tells %q", slices.Sorted(maps.Keys(theirs)))
		})
	}
}

// told are the metrics of a proxy that are there once it serves a Service, and its events' reasons.
func (n *topology) told(t *testing.T, who, mode string) map[string]bool {
	t.Helper()
	server := kubetest.New(t)
	markers++
	server.Set(thisNodeInZone(), service(0, named("marker", "10.96.9.9"), func(s *corev1.Service) { s.Spec.Ports[0].Port = markers }), slice(0, "marker", "pod-a"))
	p := start(t, who, mode, server, defaultNetwork())
	defer p.stop()
	p.ready(t)
	n.awaitMarker(t, p, "10.96.9.9")
	for _, path := range []string{"healthz", "livez"} {
		if r, err := http.Get("http://127.0.0.1:10256/" + path); err != nil {
			t.Fatal(err)
		} else {
			r.Body.Close()
		}
	}
	out := map[string]bool{}
	for name := range metricsOf(t) {
		out[name] = true
	}
	for end := time.Now().Add(10 * time.Second); len(server.Objects("events")) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s sent no event", who)
		}
	}
	for _, o := range server.Objects("events") {
		if e, ok := o.(*eventsv1.Event); ok {
			out["event "+e.Type+" "+e.Reason+" of "+e.Regarding.Kind+" "+e.Regarding.Name+" by "+e.ReportingController] = true
		}
	}
	return out
}

func metricsOf(t *testing.T) map[string]bool {
	t.Helper()
	r, err := http.Get("http://127.0.0.1:10249/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) == 4 && words[1] == "TYPE" && strings.HasPrefix(words[2], "kubeproxy_") {
			out[words[2]] = true
		}
	}
	return out
}
