package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/config"
	"github.com/orlop/orlop/proxy/conntrack"
	"github.com/orlop/orlop/proxy/health"
	"github.com/orlop/orlop/proxy/metrics"
	"github.com/orlop/orlop/proxy/model"
)

// servers has all who want to know be told of the proxy's work, and returns what must run beside it.
func (p *parts) servers(ctx context.Context) ([]func(context.Context), error) {
	m := metrics.New(string(p.config.Mode))
	h := &health.Health{Answered: m.Answered}
	services := &health.Services{Log: p.log, Healthy: h.Healthy, Failed: p.tellService}
	cleaner := conntrack.New(p.log, m.Cleaned)
	run := []func(context.Context){cleaner.Run, func(ctx context.Context) { <-ctx.Done(); services.Close() }}
	if p.events != nil {
		run = append(run, p.events.Run)
		p.tellNode(false, "Starting", "")
	}
	if p.config.Mode == config.IPVS {
		const note = "mode ipvs is deprecated, and Kubernetes is about to remove it; mode nftables does more, and quicker"
		p.log.Warn(note)
		p.tellNode(true, "IPVSDeprecation", note)
	}
	for _, s := range []endpoint{
		{"healthzBindAddress", p.config.HealthzBindAddress, h.Handler(), "FailedToStartProxierHealthcheck"},
		{"metricsBindAddress", p.config.MetricsBindAddress, p.metricsHandler(m), "FailedToStartMetricServer"},
	} {
		if strings.HasSuffix(s.addr, ":0") {
			continue
		}
		serve, err := p.listen(ctx, s)
		if err != nil {
			return nil, err
		}
		run = append(run, serve)
	}
	p.proxy.Observers = []proxy.Observer{m, h, services, cleaner}
	return run, nil
}

// endpoint is a server of the proxy's own.
type endpoint struct {
	field, addr string
	handler     http.Handler
	failed      string // the reason of the event that tells so, which is kube-proxy's
}

// tellNode tells the users of this node.
func (p *parts) tellNode(warning bool, reason, note string) {
	p.events.Send(kube.Event{About: corev1.ObjectReference{Kind: "Node", Name: p.node.Name, UID: types.UID(p.node.Name)}, Warning: warning,
		Reason: reason, Action: "StartKubeProxy", Note: note})
}

// tellService tells the users of a Service that its health can't be asked for.
func (p *parts) tellService(name model.Name, err error) {
	p.events.Send(kube.Event{About: corev1.ObjectReference{Kind: "Service", Namespace: name.Namespace, Name: name.Name}, Warning: true,
		Reason: "FailedToStartServiceHealthcheck", Action: "Listen", Note: err.Error()})
}

func (p *parts) metricsHandler(m *metrics.Metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", m.Handler())
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, string(p.config.Mode)) })
	mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{config.Group: p.config.Whole()}) // whoever asked has gone
	})
	mux.Handle(explainPath, explainer{mode: string(p.config.Mode), proxy: p.proxy})
	if p.config.EnableProfiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// listenAgain is how long to wait for an address that another program has.
const listenAgain = 5 * time.Second

// listen makes a server that is tried again and again where it can't listen, unless the configuration wants it to be an
// error.
func (p *parts) listen(ctx context.Context, s endpoint) (func(context.Context), error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.addr)
	if err != nil {
		err = fmt.Errorf("%s %s: %w", s.field, s.addr, err)
		p.tellNode(true, s.failed, err.Error())
	}
	if err != nil && p.config.BindAddressHardFail {
		return nil, err
	}
	server := &http.Server{Handler: s.handler, ReadHeaderTimeout: 10 * time.Second}
	return func(ctx context.Context) {
		defer context.AfterFunc(ctx, func() { _ = server.Close() })()
		for ctx.Err() == nil {
			if err == nil {
				err = server.Serve(l)
			}
			if errors.Is(err, http.ErrServerClosed) {
				return
			}
			p.log.Warn("can't listen", "field", s.field, "addr", s.addr, "retry", listenAgain, "err", err)
			wait := time.NewTimer(listenAgain)
			select {
			case <-ctx.Done():
			case <-wait.C:
			}
			wait.Stop()
			l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", s.addr)
		}
	}, nil
}

// podsClient reaches the kubelet of this node, which on a lone machine has a certificate of its own making.
func podsClient() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}
