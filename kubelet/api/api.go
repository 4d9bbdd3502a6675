// Package api serves the kubelet API: what kubectl, the API server, Prometheus and metrics-server ask a node for.
//
// Who asks is found out by a client certificate or a token, and may do what the API server says: see Auth. Without Auth
// everybody may do everything, so such a server must listen on loopback alone.
package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/api/metrics"
)

// Host is the kubelet behind the API.
type Host interface {
	Pods() []*v1.Pod                          // all of this node, with their newest statuses
	Changed() <-chan struct{}                 // closed once Pods may return something else than it does after this call
	PodByName(namespace, name string) *v1.Pod // one of them; nil if there is none
	Healthy() error                           // whether pods are still looked after
}

// Stats measures.
type Stats interface {
	Summary(ctx context.Context) (*stats.Summary, error)
	Resource() prometheus.Collector
	Cadvisor() prometheus.Collector
}

// Config is what a Server needs.
type Config struct {
	Host    Host
	Runtime cri.RuntimeServiceClient
	Stats   Stats
	Metrics *metrics.Metrics
	Probes  prometheus.Collector // of /metrics/probes
	Configz func() any           // the KubeletConfiguration in use
	Auth    *Auth                // nil: everybody may do everything

	Debugging  bool   // enableDebuggingHandlers: exec, logs and the like
	Profiling  bool   // enableProfilingHandler
	SystemLogs string // the directory of /logs/ with enableSystemLogHandler, /var/log; "" without

	Log *slog.Logger
}

// Server serves the kubelet API.
type Server struct {
	cfg        Config
	systemLogs http.Handler
}

// New makes a server.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg}
	if cfg.SystemLogs != "" {
		// Containers may write below /var/log: a link that they left there leads nowhere outside.
		root, err := os.OpenRoot(cfg.SystemLogs)
		if err != nil {
			return nil, fmt.Errorf("system logs: %w", err)
		}
		s.systemLogs = http.StripPrefix("/logs/", http.FileServerFS(root.FS()))
	}
	return s, nil
}

// Handler is the whole API.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	s.public(mux)
	if s.cfg.Debugging {
		s.debugging(mux)
	} else {
		for _, root := range []string{"run", "exec", "attach", "portForward", "containerLogs", "runningpods", "logs", "debug/pprof"} {
			mux.HandleFunc("/"+root+"/", disabled("Debug endpoints are disabled."))
		}
	}
	var h http.Handler = mux
	if s.cfg.Auth != nil {
		h = s.cfg.Auth.Wrap(h, s.cfg.Log)
	}
	return s.counted(h, "readwrite")
}

// ReadOnly is what readOnlyPort serves to everybody.
func (s *Server) ReadOnly() http.Handler {
	mux := http.NewServeMux()
	s.public(mux)
	return s.counted(mux, "readonly")
}

// Health is what healthzPort serves to everybody.
func (s *Server) Health() http.Handler {
	mux := http.NewServeMux()
	s.health(mux)
	return mux
}

// public are the paths of both ports.
func (s *Server) public(mux *http.ServeMux) {
	s.health(mux)
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /pods/{$}", s.pods)
	mux.HandleFunc("GET /stats/summary", s.summary)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{}))
	mux.Handle("GET /metrics/cadvisor", collected(s.cfg.Stats.Cadvisor()))
	mux.Handle("GET /metrics/resource", collected(s.cfg.Stats.Resource()))
	mux.Handle("GET /metrics/probes", collected(s.cfg.Probes))
}

func (s *Server) debugging(mux *http.ServeMux) {
	for _, method := range []string{http.MethodGet, http.MethodPost} { // GET for WebSockets
		for _, uid := range []string{"", "/{uid}"} {
			mux.HandleFunc(method+" /exec/{namespace}/{pod}"+uid+"/{container}", s.exec)
			mux.HandleFunc(method+" /attach/{namespace}/{pod}"+uid+"/{container}", s.attach)
			mux.HandleFunc(method+" /portForward/{namespace}/{pod}"+uid, s.portForward)
		}
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	mux.HandleFunc("GET /runningpods/{$}", s.runningPods)
	mux.HandleFunc("GET /configz", s.configz)
	mux.HandleFunc("POST /checkpoint/{namespace}/{pod}/{container}", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "checkpoints are not supported by this kubelet; ask the runtime for them", http.StatusNotImplemented)
	})
	if s.systemLogs != nil {
		mux.Handle("GET /logs/", s.systemLogs)
	} else {
		mux.HandleFunc("/logs/", disabled("logs endpoint is disabled."))
	}
	if s.cfg.Profiling {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	} else {
		mux.HandleFunc("/debug/pprof/", disabled("profiling endpoint is disabled."))
	}
}

func disabled(why string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, why, http.StatusMethodNotAllowed) }
}

func collected(c prometheus.Collector) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// roots are the first parts of the paths that we serve.
const roots = "healthz pods stats metrics run exec attach portForward containerLogs runningpods configz checkpoint logs debug"

// counted counts requests by the first part of their path, if it is one that we serve: others would fill the memory.
func (s *Server) counted(h http.Handler, serverType string) http.Handler {
	known := map[string]bool{}
	for root := range strings.FieldsSeq(roots) {
		known[root] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		root, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if !known[root] {
			root = "other"
		}
		method := r.Method
		if method != http.MethodGet && method != http.MethodPost {
			method = "other"
		}
		long := root == "exec" || root == "attach" || root == "portForward" || root == "debug"
		s.cfg.Metrics.Request(method, root, serverType, long)
		h.ServeHTTP(w, r)
	})
}

func (s *Server) health(mux *http.ServeMux) {
	check := func(w http.ResponseWriter, r *http.Request) {
		if err := s.cfg.Host.Healthy(); err != nil {
			s.cfg.Log.Debug("not healthy", "err", err)
			http.Error(w, "[+]ping ok\n[-]syncloop failed: "+err.Error()+"\nhealthz check failed", http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, "ok")
	}
	mux.HandleFunc("GET /healthz", check)
	mux.HandleFunc("GET /healthz/syncloop", check)
	mux.HandleFunc("GET /healthz/ping", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
}

func (s *Server) pods(w http.ResponseWriter, r *http.Request) {
	if watch, _ := strconv.ParseBool(r.FormValue("watch")); watch {
		s.watchPods(w, r)
		return
	}
	s.podList(w, s.cfg.Host.Pods())
}

func (s *Server) podList(w http.ResponseWriter, pods []*v1.Pod) {
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: make([]v1.Pod, 0, len(pods))}
	for _, p := range pods {
		item := *p
		item.TypeMeta = metav1.TypeMeta{} // lists do not repeat it
		list.Items = append(list.Items, item)
	}
	s.json(w, list)
}

func (s *Server) json(w http.ResponseWriter, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(text); err != nil {
		s.cfg.Log.Debug("answer is cut short", "err", err)
	}
}

// summary serves GET /stats/summary; only_cpu_and_memory=true leaves out file systems, networks and the like.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	all, err := s.cfg.Stats.Summary(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if r.FormValue("only_cpu_and_memory") == "true" {
		all = onlyCPUAndMemory(all)
	}
	s.json(w, all)
}

func onlyCPUAndMemory(all *stats.Summary) *stats.Summary {
	out := &stats.Summary{Node: stats.NodeStats{
		NodeName: all.Node.NodeName, StartTime: all.Node.StartTime, SystemContainers: all.Node.SystemContainers,
		CPU: all.Node.CPU, Memory: all.Node.Memory, Swap: all.Node.Swap,
	}, Pods: make([]stats.PodStats, 0, len(all.Pods))}
	for _, p := range all.Pods {
		pod := stats.PodStats{PodRef: p.PodRef, StartTime: p.StartTime, CPU: p.CPU, Memory: p.Memory, Swap: p.Swap}
		for _, c := range p.Containers {
			pod.Containers = append(pod.Containers, stats.ContainerStats{
				Name: c.Name, StartTime: c.StartTime, CPU: c.CPU, Memory: c.Memory, Swap: c.Swap,
			})
		}
		out.Pods = append(out.Pods, pod)
	}
	return out
}

func (s *Server) configz(w http.ResponseWriter, _ *http.Request) {
	s.json(w, map[string]any{"kubeletconfig": s.cfg.Configz()})
}

// How long a server waits for clients. Answers have no limit: logs may be followed for days.
const (
	headerTime = 30 * time.Second
	idleTime   = 90 * time.Second
	closeTime  = 2 * time.Second
)

// Serve serves h on l until ctx ends, over TLS if config is not nil.
func (s *Server) Serve(ctx context.Context, l net.Listener, h http.Handler, config *tls.Config) error {
	server := &http.Server{
		Handler: h, TLSConfig: config, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // handshakes that fail, mostly
	}
	stopped := context.AfterFunc(ctx, func() {
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		defer cancel()
		if server.Shutdown(patience) != nil {
			server.Close()
		}
	})
	defer stopped()
	var err error
	if config != nil {
		err = server.ServeTLS(l, "", "")
	} else {
		err = server.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
