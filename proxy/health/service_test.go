package health

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/model"
)

// freePort is one that nobody has for now.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func services(t *testing.T) (*Services, *atomic.Bool, *[]string) {
	t.Helper()
	healthy, failed := &atomic.Bool{}, &[]string{}
	healthy.Store(true)
	s := &Services{
		Log: slog.New(slog.DiscardHandler), Healthy: healthy.Load,
		Failed: func(service model.Name, err error) { *failed = append(*failed, fmt.Sprintf("%s: %v", service, err)) },
	}
	t.Cleanup(s.Close)
	return s, healthy, failed
}

// at has servers listen at these addresses; none for all.
func at(addrs []string, checks ...model.HealthCheck) proxy.Sync {
	out := proxy.Sync{HealthChecks: checks, Network: model.Network{AllNodePorts: len(addrs) == 0}}
	for _, a := range addrs {
		out.Network.NodePorts = append(out.Network.NodePorts, netip.MustParseAddr(a))
	}
	return out
}

// count is of a Service in IPv4.
func count(n int) map[model.Family]int { return map[model.Family]int{model.IPv4: n} }

// get is nil where nobody listens.
func get(t *testing.T, addr string, port uint16) (*http.Response, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + net.JoinHostPort(addr, fmt.Sprint(port)))
	if err != nil {
		return nil, ""
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, strings.TrimSpace(string(body))
}

var web = model.Name{Namespace: "shop", Name: "web"}

func TestServiceAnswers(t *testing.T) {
	s, healthy, failed := services(t)
	port := freePort(t)
	for _, tt := range []struct {
		endpoints int
		healthy   bool
		code      int
	}{{2, true, 200}, {0, true, 503}, {1, true, 200}, {1, false, 503}, {0, false, 503}} {
		healthy.Store(tt.healthy)
		s.Synced(at(nil, model.HealthCheck{Service: web, Port: port, LocalEndpoints: count(tt.endpoints)}))
		r, body := get(t, "127.0.0.1", port)
		want := fmt.Sprintf(`{"service":{"namespace":"shop","name":"web"},"localEndpoints":%d,"serviceProxyHealthy":%v}`, tt.endpoints, tt.healthy)
		if r == nil || r.StatusCode != tt.code || body != want {
			t.Fatalf("%+v: %+v %s; want %d %s", tt, r, body, tt.code, want)
		}
		for name, value := range map[string]string{"Content-Type": "application/json", "X-Content-Type-Options": "nosniff",
			"X-Load-Balancing-Endpoint-Weight": fmt.Sprint(tt.endpoints)} {
			if got := r.Header.Get(name); got != value {
				t.Errorf("%+v: %s: %q, want %q", tt, name, got, value)
			}
		}
	}
	if len(*failed) > 0 {
		t.Errorf("failed: %v", *failed)
	}
}

// Whoever asks is told of the endpoints in the family in which he asks, and a Service in one family is not asked in the other.
func TestServiceFamilies(t *testing.T) {
	s, _, failed := services(t)
	port := freePort(t)
	both := map[model.Family]int{model.IPv4: 2, model.IPv6: 1}
	for _, tt := range []struct {
		addrs  []string
		counts map[model.Family]int
		want   []string // in IPv4 and IPv6
	}{
		{nil, both, []string{"2", "1"}}, {nil, count(1), []string{"1", ""}}, {nil, map[model.Family]int{model.IPv6: 0}, []string{"", "0"}},
		{[]string{"127.0.0.1", "::1"}, both, []string{"2", "1"}}, {[]string{"127.0.0.1", "::1"}, count(3), []string{"3", ""}},
		{[]string{"127.0.0.1"}, both, []string{"2", ""}},
	} {
		s.Synced(at(tt.addrs, model.HealthCheck{Service: web, Port: port, LocalEndpoints: tt.counts}))
		for i, addr := range []string{"127.0.0.1", "::1"} {
			got := ""
			if r, _ := get(t, addr, port); r != nil {
				got = r.Header.Get("X-Load-Balancing-Endpoint-Weight")
			}
			if got != tt.want[i] {
				t.Errorf("%v at %v: %s says %q, want %q", tt.counts, tt.addrs, addr, got, tt.want[i])
			}
		}
	}
	if len(*failed) > 0 {
		t.Errorf("told %q", *failed)
	}
}

// A server is where its Service wants it, for as long as it does.
func TestServiceServers(t *testing.T) {
	s, _, _ := services(t)
	first, second := freePort(t), freePort(t)
	listens := func(addr string, port uint16, want bool) {
		t.Helper()
		if r, _ := get(t, addr, port); (r != nil) != want {
			t.Errorf("%s port %d: listens %v, want %v", addr, port, r != nil, want)
		}
	}
	check := model.HealthCheck{Service: web, Port: first, LocalEndpoints: count(1)}
	s.Synced(at([]string{"127.0.0.1"}, check))
	listens("127.0.0.1", first, true)
	listens("127.0.0.2", first, false)

	failed := at(nil)
	failed.Err = errors.New("no")
	s.Synced(failed) // what was not done is not told
	listens("127.0.0.1", first, true)

	s.Synced(at([]string{"127.0.0.1", "127.0.0.2"}, check)) // NodePorts are served at one more address
	listens("127.0.0.2", first, true)

	check.Port = second
	s.Synced(at([]string{"127.0.0.2"}, check))
	listens("127.0.0.2", first, false)
	listens("127.0.0.2", second, true)
	listens("127.0.0.1", second, false)

	s.Synced(at(nil, check, model.HealthCheck{Service: model.Name{Namespace: "shop", Name: "db"}, Port: first, LocalEndpoints: count(0)}))
	listens("127.0.0.1", first, true)
	listens("127.0.0.1", second, true)
	s.Synced(at(nil))
	listens("127.0.0.1", first, false)
	listens("127.0.0.1", second, false)
	s.Synced(at(nil, check))
	s.Close()
	listens("127.0.0.1", second, false)
}

// A port that somebody else has is told, and taken as soon as it is free.
func TestServicePortTaken(t *testing.T) {
	s, _, failed := services(t)
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	sync := at([]string{"127.0.0.1", "127.0.0.2"}, model.HealthCheck{Service: web, Port: port, LocalEndpoints: count(1)})
	s.Synced(sync)
	want := fmt.Sprintf("shop/web: healthCheckNodePort %d of service shop/web: listen tcp4 127.0.0.2:%d", port, port)
	if len(*failed) != 1 || !strings.HasPrefix((*failed)[0], want) {
		t.Errorf("told %q, want %q", *failed, want)
	}
	if r, _ := get(t, "127.0.0.1", port); r != nil {
		t.Error("half a server is left")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.tryAgain()
	if r, _ := get(t, "127.0.0.2", port); r == nil || r.StatusCode != 200 || len(*failed) != 1 {
		t.Errorf("after the port became free: %+v, told %q", r, *failed)
	}
}

// An attempt that failed is repeated, and told of once; none is left when all has ended.
func TestServiceTriesAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	synctest.Test(t, func(t *testing.T) {
		s, _, failed := services(t)
		s.Synced(at([]string{"127.0.0.2"}, model.HealthCheck{Service: web, Port: port, LocalEndpoints: count(0)}))
		s.mu.Lock()
		first := s.again
		s.mu.Unlock()
		time.Sleep(listenAgain + time.Second)
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.again == nil || s.again == first || len(*failed) != 1 || !s.failed[web] {
			t.Errorf("told %q; the next attempt: %v", *failed, s.again)
		}
	})
}

// A server listens at an address that an interface will have in a moment.
func TestServiceListensEarly(t *testing.T) {
	s, _, failed := services(t)
	s.Synced(at([]string{"127.0.0.1", "192.0.2.99", "2001:db8:ffff::99"}, model.HealthCheck{Service: web, Port: freePort(t), LocalEndpoints: map[model.Family]int{model.IPv4: 1, model.IPv6: 1}}))
	if len(*failed) > 0 {
		t.Errorf("told %q", *failed)
	}
}
