package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"k8s.io/apimachinery/pkg/api/resource"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"github.com/orlop/orlop/kubelet/api"
	"github.com/orlop/orlop/kubelet/logs"
)

// servers listens where the configuration says, and returns what serves there until ctx ends: the kubelet API, the
// read-only port and the health port. A node without an API server has nobody to ask who may do what, so its API is for
// those on the machine alone.
func (p *parts) servers(ctx context.Context) ([]func(), error) {
	c := p.config
	auth, err := p.auth()
	if err != nil {
		return nil, err
	}
	logDir := ""
	if *c.EnableSystemLogHandler {
		logDir = "/var/log"
	}
	s, err := api.New(api.Config{
		Host: p.kubelet, Runtime: p.runtime, Stats: p.stats, Metrics: p.metrics, Probes: p.kubelet.Probes(),
		Configz: func() any { return c.KubeletConfiguration }, Auth: auth,
		Debugging: *c.EnableDebuggingHandlers, Profiling: *c.EnableProfilingHandler, SystemLogs: logDir, Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	var run []func()
	listen := func(host string, port int32, h http.Handler, config *tls.Config) error {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		run = append(run, func() {
			if err := s.Serve(ctx, l, h, config); err != nil {
				p.log.Error("server ended", "address", l.Addr().String(), "err", err)
			}
		})
		return nil
	}
	if *c.HealthzPort > 0 {
		if err := listen(c.HealthzBindAddress, *c.HealthzPort, s.Health(), nil); err != nil {
			return nil, err
		}
	}
	if !*c.EnableServer {
		return run, nil
	}
	if c.ReadOnlyPort > 0 {
		if err := listen(c.Address, c.ReadOnlyPort, s.ReadOnly(), nil); err != nil {
			return nil, err
		}
	}
	if auth == nil {
		return run, listen("127.0.0.1", c.Port, s.Handler(), nil)
	}
	config, err := p.tls(ctx)
	if err != nil {
		return nil, err
	}
	return run, listen(c.Address, c.Port, s.Handler(), config)
}

// auth asks the API server; nil without one.
func (p *parts) auth() (*api.Auth, error) {
	if p.client == nil {
		return nil, nil
	}
	c := p.config
	a := api.AuthConfig{
		Node: p.name, ClientCA: c.Authentication.X509.ClientCAFile, Anonymous: *c.Authentication.Anonymous.Enabled,
		TokenTTL:   c.Authentication.Webhook.CacheTTL.Duration,
		AllowedTTL: c.Authorization.Webhook.CacheAuthorizedTTL.Duration, DeniedTTL: c.Authorization.Webhook.CacheUnauthorizedTTL.Duration,
	}
	if *c.Authentication.Webhook.Enabled {
		a.Tokens = p.client.TokenReviews.All()
	}
	if c.Authorization.Mode == kubeletconfig.KubeletAuthorizationModeWebhook {
		a.Access = p.client.AccessReviews.All()
	}
	return api.NewAuth(a)
}

func (p *parts) tls(ctx context.Context) (*tls.Config, error) {
	certificate, err := p.servingCertificate(ctx)
	if err != nil {
		return nil, err
	}
	return api.TLS(api.TLSOptions{MinVersion: p.config.TLSMinVersion, CipherSuites: p.config.TLSCipherSuites, GetCertificate: certificate})
}

func (p *parts) rotator() (*logs.Rotator, error) {
	c := p.config
	size, err := resource.ParseQuantity(c.ContainerLogMaxSize)
	if err != nil {
		return nil, fmt.Errorf("containerLogMaxSize: %w", err)
	}
	return logs.NewRotator(logs.RotatorConfig{
		MaxBytes: size.Value(), MaxFiles: int(*c.ContainerLogMaxFiles), Workers: int(*c.ContainerLogMaxWorkers),
		Period: c.ContainerLogMonitorInterval.Duration, Running: p.kubelet.RunningContainers, Reopen: p.kubelet.ReopenLog, Log: p.log,
	})
}
