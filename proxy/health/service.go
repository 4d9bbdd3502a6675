package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

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
	addrs   []netip.Addr        // empty for all
	checks  []model.HealthCheck // as told last
	wanted  map[model.Name]model.HealthCheck
	servers map[model.Name]*server
	// failed are those that can't listen; again tries once more.
	failed map[model.Name]bool
	again  *time.Timer
	closed bool
}

// listenAgain is how long to wait for a port that another program has.
const listenAgain = 5 * time.Second

// server answers for one Service.
type server struct {
	*Services
	service model.Name
	port    uint16
	addrs   []netip.Addr
	http    *http.Server

	mu        sync.Mutex
	endpoints map[model.Family]int
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
	var addrs []netip.Addr
	if !sync.Network.AllNodePorts {
		addrs = sync.Network.NodePorts
	}
	if s.wanted != nil && same(s.checks, sync.HealthChecks) && slices.Equal(s.addrs, addrs) {
		return
	}
	s.addrs, s.checks = addrs, sync.HealthChecks
	s.wanted = map[model.Name]model.HealthCheck{}
	for _, check := range sync.HealthChecks {
		s.wanted[check.Service] = check
	}
	for name, have := range s.servers {
		if want, ok := s.wanted[name]; !ok || want.Port != have.port || !slices.Equal(have.addrs, s.addrs) || !have.isIn(want.LocalEndpoints) {
			have.close()
			delete(s.servers, name)
		}
	}
	s.serveAllLocked()
}

// same tells whether it is one slice, see model.State.
func same(a, b []model.HealthCheck) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func (s *Services) serveAllLocked() {
	before := s.failed
	s.failed = map[model.Name]bool{}
	for name, want := range s.wanted {
		s.serveLocked(name, want, before[name])
	}
	if len(s.failed) > 0 && s.again == nil && !s.closed {
		s.again = time.AfterFunc(listenAgain, s.tryAgain)
	}
}

func (s *Services) tryAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.again = nil; !s.closed {
		s.serveAllLocked()
	}
}

// serveLocked makes a server if there is none, and tells it how many endpoints there are. One that can't listen is tried
// again after a while, and told of once.
func (s *Services) serveLocked(name model.Name, want model.HealthCheck, told bool) {
	have := s.servers[name]
	if have == nil {
		have = &server{Services: s, service: name, port: want.Port, addrs: s.addrs, endpoints: want.LocalEndpoints}
		if err := have.listen(); err != nil {
			if s.failed[name] = true; !told {
				s.tell(name, fmt.Errorf("healthCheckNodePort %d of service %s: %w", want.Port, name, err))
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

func (s *Services) tell(name model.Name, err error) {
	s.Log.Error("a load balancer can't ask for a Service's health", "service", name.String(), "err", err)
	if s.Failed != nil {
		s.Failed(name, err)
	}
}

// Close ends all servers.
func (s *Services) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed = true; s.again != nil {
		s.again.Stop()
	}
	for name, have := range s.servers {
		have.close()
		delete(s.servers, name)
	}
}

// isIn tells whether the server is one of a Service in these families.
func (s *server) isIn(families map[model.Family]int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.EqualFunc(s.endpoints, families, func(int, int) bool { return true })
}

// networks are those of a family, which a Service without it is not asked in.
var networks = map[model.Family]string{model.IPv4: "tcp4", model.IPv6: "tcp6"}

func (s *server) listen() error {
	type place struct{ network, addr string }
	var places []place
	for family := range s.endpoints {
		if len(s.addrs) == 0 {
			places = append(places, place{networks[family], ""})
		}
		for _, a := range s.addrs {
			if model.FamilyOf(a) == family {
				places = append(places, place{networks[family], a.String()})
			}
		}
	}
	var listeners []net.Listener
	for _, p := range places {
		l, err := (&net.ListenConfig{Control: freely}).Listen(context.Background(), p.network, net.JoinHostPort(p.addr, strconv.Itoa(int(s.port))))
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

// freely lets a socket listen at an address that an interface is about to have: a new one of IPv6 can't be used for a
// second.
func freely(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, failed)
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
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := endpointReport{ServiceProxyHealthy: s.Healthy()}
	out.Service.Namespace, out.Service.Name = s.service.Namespace, s.service.Name
	s.mu.Lock()
	out.LocalEndpoints = s.endpoints[askedIn(r)]
	s.mu.Unlock()
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(out.LocalEndpoints))
	code := http.StatusServiceUnavailable
	if out.LocalEndpoints > 0 && out.ServiceProxyHealthy {
		code = http.StatusOK
	}
	write(w, code, out)
}

// askedIn is the family of the address at which a server was asked.
func askedIn(r *http.Request) model.Family {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		return model.FamilyOf(local.AddrPort().Addr().Unmap())
	}
	return model.IPv4
}
