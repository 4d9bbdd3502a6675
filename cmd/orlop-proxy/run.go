package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/config"
	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/watch"
)

// settings are what was asked for.
type settings struct {
	flags  *config.Flags
	config *config.Config
	log    *slog.Logger
}

// parts are what a proxy is put together from.
type parts struct {
	settings
	node     watch.Node // as far as it is known before a source tells more
	families []model.Family
	events   *kube.Recorder // nil without an API server
	source   watch.Source
	backend  proxy.Backend
	proxy    *proxy.Proxy
}

// run keeps the rules until ctx ends, and leaves them.
func run(ctx context.Context, s settings) error {
	p := &parts{settings: s, families: config.Families()}
	for _, make := range []func() error{p.identify, p.connect, p.prepare} {
		if err := make(); err != nil {
			return err
		}
	}
	var err error
	if p.backend, err = newBackend(s); err != nil {
		return err
	}
	defer p.backend.Close()
	if err := cleanup(string(s.config.Mode)); err != nil {
		s.log.Warn("rules of another mode are left", "err", err)
	}
	p.proxy = proxy.New(proxy.Options{
		Log: s.log, Backend: p.backend, Node: p.node, Network: p.network, MinInterval: s.config.MinSyncPeriod(),
	})
	serve, err := p.servers(ctx)
	if err != nil {
		return err
	}
	if s.config.NodePortsMove() || p.findsAddresses() {
		addresses, err := followAddresses()
		if err != nil {
			return err
		}
		serve = append(serve, func(ctx context.Context) {
			if err := addresses.run(ctx, p.proxy.Recheck); err != nil {
				s.log.Error("NodePorts stay at the addresses that the node has now", "err", err)
			}
		})
	}
	s.log.Info("keeping the rules of Services", "node", p.node.Name, "mode", s.config.Mode, "alone", p.events == nil)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	for _, run := range serve {
		all.Go(func() { run(ctx) })
	}
	err = p.proxy.Run(ctx, p.source)
	cancel()
	all.Wait()
	return err
}

// identify finds the node's name and, where it is told, its address.
func (p *parts) identify() (err error) {
	if p.node.Name, err = kube.NodeName(p.config.HostnameOverride); err != nil {
		return err
	}
	if addr := p.bindAddr(); !addr.IsUnspecified() {
		p.node.Addresses = []netip.Addr{addr}
	}
	return nil
}

// bindAddr is the address that the configuration says the node has, unspecified if it doesn't.
func (p *parts) bindAddr() netip.Addr {
	addr, err := netip.ParseAddr(p.config.BindAddress)
	if err != nil { // Validate has told
		return netip.IPv4Unspecified()
	}
	return addr.Unmap()
}

// findsAddresses is true on a machine without an API server if nobody says which addresses it has.
func (p *parts) findsAddresses() bool {
	return p.flags.ServicesDir != "" && p.bindAddr().IsUnspecified()
}

// connect makes the source: an API server, or a directory where there is none.
func (p *parts) connect() error {
	if p.flags.ServicesDir != "" {
		dir := &watch.Directory{Path: p.flags.ServicesDir, Node: p.node, Log: p.log}
		if p.flags.PodsURL != "" {
			dir.Pods = &watch.Pods{URL: strings.TrimSuffix(p.flags.PodsURL, "/"), Client: podsClient()}
		}
		p.source = dir
		return nil
	}
	api, err := p.restConfig()
	if err != nil {
		return err
	}
	client, err := kube.New(api)
	if err != nil {
		return err
	}
	if p.events, err = kube.NewRecorder(client, "kube-proxy", p.node.Name, p.log); err != nil {
		return err
	}
	p.source = &watch.API{
		Client: client, Node: p.node.Name, NeedPodCIDRs: p.config.DetectLocalMode == config.NodeCIDR,
		WantServiceCIDRs: p.config.Mode == config.NFTables, Events: p.events, Log: p.log,
	}
	return nil
}

func (p *parts) restConfig() (*rest.Config, error) {
	c := p.config.ClientConnection
	if c.Kubeconfig == "" && p.flags.Master == "" {
		if _, err := os.Stat("/var/run/secrets/kubernetes.io/serviceaccount/token"); err != nil {
			return nil, fmt.Errorf("nothing says where Services come from: set --kubeconfig (clientConnection.kubeconfig), or --services-dir on a machine without an API server")
		}
	}
	api, err := clientcmd.BuildConfigFromFlags(p.flags.Master, c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	api.QPS, api.Burst, api.ContentType, api.AcceptContentTypes = c.QPS, int(c.Burst), c.ContentType, c.AcceptContentTypes
	api.UserAgent = "orlop-proxy/" + version
	return api, nil
}

// network says what the rules need to know, on the node as it is now.
func (p *parts) network(node watch.Node, cidrs []netip.Prefix) (model.Network, error) {
	if p.findsAddresses() && len(node.Addresses) == 0 {
		node.Addresses = ownAddresses()
	}
	facts := config.Facts{PodCIDRs: node.PodCIDRs, ServiceCIDRs: cidrs, Families: p.families}
	// Loopback stands there for what isn't known, which is no address of the node's that rules could be about.
	facts.NodeIPs = slices.DeleteFunc(node.IPs(p.bindAddr()), netip.Addr.IsLoopback)
	var err error
	if facts.Interfaces, err = config.InterfaceAddrs(); err != nil {
		return model.Network{}, err
	}
	return p.config.Network(facts)
}
