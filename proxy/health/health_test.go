package health

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/watch"
)

// answer is what /healthz or /livez said.
type answer struct {
	code int
	body map[string]any
}

func ask(t *testing.T, h *Health, path string) answer {
	t.Helper()
	w := httptest.NewRecorder()
	h.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	out := answer{code: w.Code, body: map[string]any{}}
	if err := json.Unmarshal(w.Body.Bytes(), &out.body); err != nil {
		t.Fatalf("%s: %v: %s", path, err, w.Body)
	}
	if got := w.Header(); got.Get("Content-Type") != "application/json" || got.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: headers %v", path, got)
	}
	return out
}

func synced(err error) proxy.Sync { return proxy.Sync{Began: time.Now(), Ended: time.Now(), Err: err} }

// What is pending for too long makes both fail, and a node that is about to go only /healthz.
func TestHealth(t *testing.T) {
	leaving := proxy.Sync{Node: watch.Node{Leaving: true}}
	for _, tt := range []struct {
		name           string
		do             func(h *Health)
		healthz, livez int
	}{
		{"nothing was to do yet", func(*Health) {}, 200, 200},
		{"something is pending", func(h *Health) { h.Pending(time.Now()); time.Sleep(patience - time.Second) }, 200, 200},
		{"something is pending for too long", func(h *Health) { h.Pending(time.Now()); time.Sleep(patience) }, 503, 503},
		{"more is pending later", func(h *Health) {
			h.Pending(time.Now())
			time.Sleep(patience / 2)
			h.Pending(time.Now())
			time.Sleep(patience / 2)
		}, 503, 503},
		{"it was done", func(h *Health) { h.Pending(time.Now()); time.Sleep(patience); h.Synced(synced(nil)) }, 200, 200},
		{"nothing has changed for long", func(h *Health) { h.Synced(synced(nil)); time.Sleep(24 * time.Hour) }, 200, 200},
		{"it fails", func(h *Health) { h.Pending(time.Now()); time.Sleep(patience); h.Synced(synced(errors.New("no"))) }, 503, 503},
		{"the node is about to go", func(h *Health) { h.Synced(leaving) }, 503, 200},
		{"the node stays after all", func(h *Health) { h.Synced(leaving); h.Synced(synced(nil)) }, 200, 200},
		{"the node is about to go, and rules fail", func(h *Health) {
			h.Pending(time.Now())
			time.Sleep(patience)
			failed := leaving
			failed.Err = errors.New("no")
			h.Synced(failed)
		}, 503, 503},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &Health{}
				tt.do(h)
				healthz, livez := ask(t, h, "/healthz"), ask(t, h, "/livez")
				if healthz.code != tt.healthz || livez.code != tt.livez {
					t.Errorf("healthz %d, livez %d; want %d and %d", healthz.code, livez.code, tt.healthz, tt.livez)
				}
				if h.Healthy() != (tt.livez == 200) {
					t.Errorf("Healthy is %v", h.Healthy())
				}
			})
		})
	}
}

// The body is kube-proxy's: lastUpdated is now where all is well, and else when rules were set last.
func TestHealthBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Health{}
		sync := synced(nil)
		sync.Network.Families = []model.Family{model.IPv4, model.IPv6}
		h.Synced(sync)
		then := time.Now()
		status := func(healthy bool) map[string]any {
			one := map[string]any{"lastUpdated": then.Format(time.RFC3339Nano), "healthy": healthy}
			return map[string]any{"IPv4": one, "IPv6": one}
		}
		time.Sleep(time.Hour)
		for path, eligible := range map[string]any{"/healthz": true, "/livez": nil} {
			got := ask(t, h, path)
			now := time.Now().Format(time.RFC3339Nano)
			want := map[string]any{"lastUpdated": now, "currentTime": now, "healthy": true, "status": status(true)}
			if eligible != nil {
				want["nodeEligible"] = eligible
			}
			if fmt.Sprint(got.body) != fmt.Sprint(want) {
				t.Errorf("%s: %v, want %v", path, got.body, want)
			}
		}
		h.Pending(time.Now())
		time.Sleep(patience)
		got := ask(t, h, "/livez").body
		if got["lastUpdated"] != then.Format(time.RFC3339Nano) || got["healthy"] != false || fmt.Sprint(got["status"]) != fmt.Sprint(status(false)) {
			t.Errorf("not healthy: %v", got)
		}
	})
}

func TestHealthCounts(t *testing.T) {
	var got []string
	h := &Health{Answered: func(path string, code int) { got = append(got, fmt.Sprint(path, code)) }}
	ask(t, h, "/healthz")
	ask(t, h, "/livez")
	h.Synced(proxy.Sync{Node: watch.Node{Leaving: true}})
	ask(t, h, "/healthz")
	if fmt.Sprint(got) != "[/healthz200 /livez200 /healthz503]" {
		t.Errorf("counted %v", got)
	}
	w := httptest.NewRecorder()
	h.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("/: %d", w.Code)
	}
}
