package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/model"
)

// Services has a server for each Service with a healthCheckNodePort. It is a proxy.Observer.
type Services struct {
	Log *slog.Logger
	// Healthy tells whether the proxy works: without it, nothing is sure of endpoints either.
	Healthy func() bool
	// Failed is told of a Service whose server can't listen; may be nil.
	Failed func(service model.Name, err error)

	mu      sync.Mutex
	addrs   []netip.Addr // empty for all
	servers map[model.Name]*server
}

// server answers for one Service.
type server struct {
	*Services
	service model.Name
	port    uint16
	addrs   []netip.Addr
	http    *http.Server

	mu        sync.Mutex
	endpoints int
}

// Pending is of proxy.Observer.
func (s *Services) Pending(time.Time) {}

// Synced is of proxy.Observer.
func (s *Services) Synced(sync proxy.Sync) {
	if sync.Err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs = nil
	if !sync.Network.AllNodePorts {
		s.addrs = sync.Network.NodePorts
	}
	wanted := map[model.Name]model.HealthCheck{}
	for _, check := range sync.HealthChecks {
		wanted[check.Service] = check
	}
	for name, have := range s.servers {
		if want, ok := wanted[name]; !ok || want.Port != have.port || !slices.Equal(have.addrs, s.addrs) {
			have.close()
			delete(s.servers, name)
		}
	}
	for name, want := range wanted {
		s.serveLocked(name, want)
	}
}

// serveLocked makes a server if there is none, and tells it how many endpoints there are. One that can't listen is tried
// again with the next sync.
func (s *Services) serveLocked(name model.Name, want model.HealthCheck) {
	have := s.servers[name]
	if have == nil {
		have = &server{Services: s, service: name, port: want.Port, addrs: s.addrs}
		if err := have.listen(); err != nil {
			err = fmt.Errorf("healthCheckNodePort %d of service %s: %w", want.Port, name, err)
			s.Log.Error("a load balancer can't ask for a Service's health", "service", name.String(), "err", err)
			if s.Failed != nil {
				s.Failed(name, err)
			}
			return
		}
		if s.servers == nil {
			s.servers = map[model.Name]*server{}
		}
		s.servers[name] = have
	}
	have.mu.Lock()
	have.endpoints = want.LocalEndpoints
	have.mu.Unlock()
}

// Close ends all servers.
func (s *Services) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, have := range s.servers {
		have.close()
		delete(s.servers, name)
	}
}

func (s *server) listen() error {
	addrs := []string{""}
	if len(s.addrs) > 0 {
		addrs = nil
		for _, a := range s.addrs {
			addrs = append(addrs, a.String())
		}
	}
	var listeners []net.Listener
	for _, a := range addrs {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(a, strconv.Itoa(int(s.port))))
		if err != nil {
			for _, l := range listeners {
				err = errors.Join(err, l.Close())
			}
			return err
		}
		listeners = append(listeners, l)
	}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	for _, l := range listeners {
		go s.http.Serve(l) //nolint:errcheck // ends with Close
	}
	return nil
}

func (s *server) close() { _ = s.http.Close() } // its listeners are closed whatever it says

// endpointReport is what a load balancer reads, in kube-proxy's form.
type endpointReport struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

// ServeHTTP answers whether packets for the Service shall be sent to this node, and how many of them (KEP-3836 and the
// header that some load balancers weigh nodes by).
func (s *server) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	out := endpointReport{ServiceProxyHealthy: s.Healthy()}
	out.Service.Namespace, out.Service.Name = s.service.Namespace, s.service.Name
	s.mu.Lock()
	out.LocalEndpoints = s.endpoints
	s.mu.Unlock()
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(out.LocalEndpoints))
	code := http.StatusServiceUnavailable
	if out.LocalEndpoints > 0 && out.ServiceProxyHealthy {
		code = http.StatusOK
	}
	write(w, code, out)
}
