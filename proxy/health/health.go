// Package health tells load balancers and people whether the proxy works: /healthz and /livez for the node, and a server
// for each Service whose load balancer wants to know whether it has endpoints here.
package health

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/model"
)

// patience is how long something may be pending before the proxy is not healthy: twice the period in which kube-proxy
// repeats its rules.
const patience = time.Minute

// Health is a proxy.Observer.
type Health struct {
	// Answered is told of each answer of /healthz and /livez; may be nil.
	Answered func(path string, code int)

	mu           sync.Mutex
	pendingSince time.Time // zero if nothing is
	updated      time.Time
	families     []model.Family // those of the last sync that did not fail
	leaving      bool
}

// Pending is of proxy.Observer.
func (h *Health) Pending(at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pendingSince.IsZero() {
		h.pendingSince = at
	}
}

// Synced is of proxy.Observer.
func (h *Health) Synced(s proxy.Sync) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaving = s.Node.Leaving
	if s.Err == nil {
		h.pendingSince, h.updated, h.families = time.Time{}, s.Ended, s.Network.Families
	}
}

// report is what /healthz and /livez answer, in kube-proxy's form.
type report struct {
	LastUpdated  time.Time `json:"lastUpdated"`
	CurrentTime  time.Time `json:"currentTime"`
	NodeEligible *bool     `json:"nodeEligible,omitempty"`
	Healthy      bool      `json:"healthy"`
	// Status is that of each family, which is set in one sync with the other.
	Status map[string]familyReport `json:"status,omitempty"`
}

type familyReport struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// Healthy is false if something has been pending for too long. A proxy that has not begun yet is healthy.
func (h *Health) Healthy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.healthyLocked(time.Now())
}

func (h *Health) healthyLocked(now time.Time) bool {
	return h.pendingSince.IsZero() || now.Sub(h.pendingSince) < patience
}

// Handler serves /healthz, which load balancers ask: it also fails on a node that is about to go, so that nothing new is
// sent there; and /livez, which says whether the proxy itself works (KEP-3836).
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { h.answer(w, "/healthz") })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { h.answer(w, "/livez") })
	return mux
}

func (h *Health) answer(w http.ResponseWriter, path string) {
	now := time.Now()
	h.mu.Lock()
	out := report{LastUpdated: h.updated, CurrentTime: now, Healthy: h.healthyLocked(now), Status: map[string]familyReport{}}
	for _, f := range h.families {
		out.Status[f.String()] = familyReport{LastUpdated: h.updated, Healthy: out.Healthy}
	}
	eligible := !h.leaving
	h.mu.Unlock()
	good := out.Healthy
	if path == "/healthz" {
		out.NodeEligible = &eligible
		good = good && eligible
	}
	code := http.StatusServiceUnavailable
	if good {
		code = http.StatusOK
		out.LastUpdated = now // what there is was looked at, though nothing may have changed for long: as kube-proxy says it
	}
	if h.Answered != nil {
		h.Answered(path, code)
	}
	write(w, code, out)
}

func write(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // whoever asked has gone
}
