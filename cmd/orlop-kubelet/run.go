package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/internal/kube"
	"github.com/orlop/orlop/kubelet"
	"github.com/orlop/orlop/kubelet/admit"
	"github.com/orlop/orlop/kubelet/api/metrics"
	"github.com/orlop/orlop/kubelet/cgroup"
	"github.com/orlop/orlop/kubelet/cluster"
	"github.com/orlop/orlop/kubelet/config"
	"github.com/orlop/orlop/kubelet/csi"
	"github.com/orlop/orlop/kubelet/evict"
	"github.com/orlop/orlop/kubelet/imagegc"
	"github.com/orlop/orlop/kubelet/machine"
	"github.com/orlop/orlop/kubelet/mount"
	"github.com/orlop/orlop/kubelet/node"
	"github.com/orlop/orlop/kubelet/objects"
	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/podfiles"
	"github.com/orlop/orlop/kubelet/runtime"
	"github.com/orlop/orlop/kubelet/shutdown"
	"github.com/orlop/orlop/kubelet/source"
	"github.com/orlop/orlop/kubelet/stats"
	"github.com/orlop/orlop/kubelet/volume"
)

// settings are what was asked for.
type settings struct {
	flags  *config.Flags
	config *config.Config
	log    *slog.Logger
}

// parts are what a kubelet is put together from, in the order in which they are made.
type parts struct {
	settings
	name    string // of the node
	ips     []net.IP
	facts   machine.Facts
	limits  limits
	client  *cluster.Client // nil on a lone machine
	api     *rest.Config    // how client reaches it
	runtime *runtime.Client
	events  record.EventRecorder
	objects followed
	csi     *csi.Manager
	volumes *volume.Manager
	cgroups *cgroup.Manager
	node    *node.Manager
	kubelet *kubelet.Kubelet
	metrics *metrics.Metrics
	stats   *stats.Provider
	images  *imagegc.Manager
	evict   *evict.Manager
	end     *shutdown.Manager
	changed chan struct{} // the node's status should be told at once
}

// followed are objects that somebody must follow.
type followed interface {
	kubelet.Objects
	volume.Objects
	csi.Objects
	Run(ctx context.Context)
}

// run keeps the node until ctx ends. Containers go on without it.
func run(ctx context.Context, s settings) error {
	p := &parts{settings: s, changed: make(chan struct{}, 1)}
	for _, make := range []func(context.Context) error{p.identify, p.connect, p.measure, p.keepObjects, p.makeCgroups, p.makeNode, p.makeVolumes, p.makeKubelet, p.makeCare} {
		if err := make(ctx); err != nil {
			return err
		}
	}
	defer p.runtime.Close()
	serve, err := p.servers(ctx)
	if err != nil {
		return err
	}
	rotate, err := p.rotator()
	if err != nil {
		return err
	}
	adjustOOMScore(s)
	s.log.Info("keeping pods", "node", p.name, "runtime", s.config.ContainerRuntimeEndpoint, "alone", p.client == nil)
	var all sync.WaitGroup
	all.Go(func() { p.objects.Run(ctx) })
	all.Go(func() { p.node.Run(ctx) })
	all.Go(func() { p.kubelet.Run(ctx) })
	all.Go(func() {
		if err := p.csi.Run(ctx); err != nil {
			s.log.Error("storage drivers are not followed", "err", err)
		}
	})
	all.Go(func() { rotate.Run(ctx) })
	all.Go(func() { p.images.Run(ctx) })
	all.Go(func() { p.evict.Run(ctx) })
	all.Go(func() { p.end.Run(ctx) })
	for _, s := range serve {
		all.Go(s)
	}
	all.Wait()
	return nil
}

// identify finds the node's name and addresses.
func (p *parts) identify(context.Context) (err error) {
	if p.name, err = kube.NodeName(p.flags.HostnameOverride); err != nil {
		return err
	}
	configured, err := machine.ParseIPs(p.flags.NodeIP)
	if err != nil {
		return fmt.Errorf("--node-ip: %w", err)
	}
	p.ips, err = machine.Addresses(configured)
	return err
}

func (p *parts) connect(ctx context.Context) (err error) {
	c := p.config
	p.metrics = metrics.New(p.name, func() []*v1.Pod { return p.kubelet.Pods() })
	if p.runtime, err = runtime.Dial(c.ContainerRuntimeEndpoint, c.ImageServiceEndpoint, c.RuntimeRequestTimeout.Duration, p.metrics.Interceptor()); err != nil {
		return err
	}
	if p.client, p.api, err = newClient(ctx, p.settings, p.name); err != nil {
		return err
	}
	if p.events, err = newRecorder(p.settings, p.api, p.name); err != nil {
		return err
	}
	return os.MkdirAll(filepath.Join(p.flags.RootDir, "pods"), 0o750)
}

func (p *parts) measure(context.Context) (err error) {
	if p.facts, err = machine.Read(p.flags.RootDir); err != nil {
		return err
	}
	if *p.config.FailSwapOn && p.facts.Swap > 0 {
		return fmt.Errorf("this machine has swap; turn it off, or set failSwapOn: false")
	}
	if *p.config.FailCgroupV1 && !cgroup.V2() {
		return fmt.Errorf("this machine has cgroup v1; set failCgroupV1: false")
	}
	p.limits, err = newLimits(p.config, p.facts)
	return err
}

// keepObjects follows what pods refer to: at the API server, or beside the manifests of a lone machine.
func (p *parts) keepObjects(context.Context) error {
	changed := func(uid types.UID) { p.kubelet.Wake(uid) }
	if p.client != nil {
		p.objects = objects.FromAPI(p.client, changed)
	} else {
		p.objects = objects.FromDir(p.config.StaticPodPath, changed, p.log)
	}
	return nil
}

func (p *parts) makeCgroups(ctx context.Context) (err error) {
	p.cgroups, err = cgroup.New(cgroup.Config{
		Root: p.config.CgroupRoot, Systemd: systemdDriver(ctx, p.runtime, p.config.CgroupDriver, p.log),
		Disabled: !*p.config.CgroupsPerQOS, PodPids: max(*p.config.PodPidsLimit, 0),
	})
	if err != nil {
		return err
	}
	enforced := p.limits.allocatable
	if !slices.Contains(p.config.EnforceNodeAllocatable, "pods") {
		enforced = v1.ResourceList{v1.ResourceCPU: p.limits.allocatable[v1.ResourceCPU]}
	}
	if err := p.cgroups.Start(enforced); err != nil {
		return err
	}
	if *p.config.CgroupsPerQOS {
		p.events.Event(node.Reference(p.name), v1.EventTypeNormal, "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods")
	}
	return nil
}

func (p *parts) makeNode(context.Context) error {
	c := p.config
	p.node = node.New(node.Config{
		Name: p.name, Hostname: p.name, IPs: p.ips, GivenIPs: p.flags.NodeIP != "", CloudProvider: p.flags.CloudProvider == "external", ProviderID: c.ProviderID,
		Labels: p.flags.NodeLabels, Taints: c.RegisterWithTaints, Register: *c.RegisterNode, Client: p.client, Events: p.events,
		Info: p.facts.Info, Capacity: p.limits.capacity, Allocatable: p.limits.allocatable, Swap: p.facts.Swap, Port: c.Port,
		MaxImages: int(*c.NodeStatusMaxImages), Every: c.NodeStatusUpdateFrequency.Duration, Report: c.NodeStatusReportFrequency.Duration,
		LeaseSeconds: c.NodeLeaseDurationSeconds, Runtime: runtimeOf{p.runtime},
		Pressure: func() node.Pressure { return node.Pressure(p.evict.Pressure()) }, StatusNow: p.changed,
		Healthy: func() error { return utilerrors.NewAggregate([]error{p.kubelet.Healthy(), p.end.Healthy()}) },
		InUse:   func() []v1.UniqueVolumeName { return p.csi.InUse() },
		PodCIDR: func(ctx context.Context, cidr string) error {
			_, err := p.runtime.UpdateRuntimeConfig(ctx, &cri.UpdateRuntimeConfigRequest{
				RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}},
			})
			return err
		},
		Log: p.log,
	})
	return nil
}

// makeVolumes makes what has volumes, by itself or by storage drivers of this node. What such a driver in a pod mounts must
// be seen in all pods.
func (p *parts) makeVolumes(context.Context) (err error) {
	if err := mount.Share(p.flags.RootDir); err != nil {
		p.log.Warn("storage drivers in pods can't mount volumes for other pods", "err", err)
	}
	p.csi, err = csi.New(csi.Config{
		Root: p.flags.RootDir, Name: p.name, Objects: p.objects, Client: p.client, Node: p.node, InUseChanged: p.nodeChanged,
		Wake: func(uid types.UID) { p.kubelet.Wake(uid) }, Event: func(of *v1.Pod, kind, reason, message string) { p.events.Event(of, kind, reason, message) },
		Log: p.log,
	})
	if err != nil {
		return err
	}
	p.volumes = volume.New(volume.Config{
		Root: p.flags.RootDir, Objects: p.objects, CSI: p.csi, Log: p.log,
		Allocatable:       func() v1.ResourceList { return p.limits.allocatable },
		RecursiveReadOnly: func(*string) bool { return p.node.RecursiveReadOnly("") },
	})
	return nil
}

// runtimeOf shows the node what it asks of the runtime.
type runtimeOf struct{ *runtime.Client }

func (r runtimeOf) Status(ctx context.Context, q *cri.StatusRequest) (*cri.StatusResponse, error) {
	return r.Client.Status(ctx, q)
}

func (r runtimeOf) Version(ctx context.Context, q *cri.VersionRequest) (*cri.VersionResponse, error) {
	return r.Client.Version(ctx, q)
}

func (r runtimeOf) ListImages(ctx context.Context, q *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return r.Images.ListImages(ctx, q)
}

func (p *parts) makeKubelet(context.Context) error {
	c := p.config
	spec, err := p.spec()
	if err != nil {
		return err
	}
	users, err := podfiles.NewUserIDs(podfiles.Dir(p.flags.RootDir), int(c.MaxPods))
	if err != nil {
		return err
	}
	logins, err := p.logins()
	if err != nil {
		return err
	}
	sources, names := p.sources()
	p.kubelet = kubelet.New(kubelet.Config{
		Node: p.name, Root: podfiles.Dir(p.flags.RootDir), Spec: spec, Runtime: p.runtime, Client: p.client, Events: p.events,
		Objects: p.objects, Volumes: p.volumes, Cgroups: p.cgroups, NodeState: p.state, Sysctls: c.AllowedUnsafeSysctls,
		Timing: kubelet.Timing{Sync: c.SyncFrequency.Duration, FirstDelay: firstDelay(c), LastDelay: c.CrashLoopBackOff.MaxContainerRestartPeriod.Duration},
		Pulls:  pulls(c), Logins: logins, UserIDs: users, Sources: sources, Names: names, Metrics: p.metrics, Log: p.log,
	})
	return nil
}

// firstDelay of a crash loop is 10 s, or less if the last one is.
func firstDelay(c *config.Config) time.Duration {
	return min(10*time.Second, c.CrashLoopBackOff.MaxContainerRestartPeriod.Duration)
}

func pulls(c *config.Config) int {
	switch {
	case c.MaxParallelImagePulls != nil:
		return int(*c.MaxParallelImagePulls)
	case *c.SerializeImagePulls:
		return 1
	}
	return 0
}

func (p *parts) state() kubelet.NodeState {
	return kubelet.NodeState{
		Object: p.node.Registered(), Allocatable: p.limits.allocatable, IPs: p.ips, NetworkReady: p.node.NetworkReady(),
		Pressure: admit.Pressure(p.evict.Pressure()), ShuttingDown: p.end.Begun(),
	}
}

// sources are where pods come from.
func (p *parts) sources() (sources []func(context.Context, source.Sink), names []string) {
	c := p.config
	if c.StaticPodPath != "" {
		names = append(names, pod.FileSource)
		as := source.Static{Node: p.name, Source: pod.FileSource, Log: p.log}
		sources = append(sources, func(ctx context.Context, sink source.Sink) {
			source.Files(ctx, c.StaticPodPath, as, c.FileCheckFrequency.Duration, sink)
		})
	}
	if c.StaticPodURL != "" {
		names = append(names, pod.HTTPSource)
		as := source.Static{Node: p.name, Source: pod.HTTPSource, Log: p.log}
		sources = append(sources, func(ctx context.Context, sink source.Sink) {
			source.URL(ctx, source.Remote{URL: c.StaticPodURL, Header: http.Header(c.StaticPodURLHeader), Period: c.HTTPCheckFrequency.Duration}, as, sink)
		})
	}
	if p.client != nil {
		names = append(names, pod.APISource)
		sources = append(sources, func(ctx context.Context, sink source.Sink) {
			if err := source.API(ctx, p.client, p.name, sink); err != nil {
				p.log.Error("pods of the API server are not followed", "err", err)
			}
		})
	}
	return sources, names
}

// adjustOOMScore keeps the kernel from killing this process before the pods, where it may.
func adjustOOMScore(s settings) {
	if err := os.WriteFile("/proc/self/oom_score_adj", fmt.Appendf(nil, "%d", *s.config.OOMScoreAdj), 0); err != nil {
		s.log.Debug("OOM score not set", "err", err)
	}
}
