// Package kubelet keeps the pods of a node as their specs want them, over any CRI v1 runtime. It is driven by events: of
// the sources of pods, of the runtime, of probes and of objects that pods refer to.
//
//	source ──▶ registry ──▶ worker, one per pod ──▶ runtime, volumes, cgroups
//	                          │  reads what the runtime has, plans, acts, and reads again until nothing is left to do
//	                          └──▶ status ──▶ API server
//
// What a pod has come to is read from the runtime and the API server, never from memory alone, so this process may be
// killed at any moment.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/admit"
	"github.com/orlop/orlop/kubelet/backoff"
	"github.com/orlop/orlop/kubelet/cgroup"
	"github.com/orlop/orlop/kubelet/cluster"
	"github.com/orlop/orlop/kubelet/image"
	"github.com/orlop/orlop/kubelet/lifecycle"
	"github.com/orlop/orlop/kubelet/podfiles"
	"github.com/orlop/orlop/kubelet/probe"
	"github.com/orlop/orlop/kubelet/runtime"
	"github.com/orlop/orlop/kubelet/source"
	"github.com/orlop/orlop/kubelet/spec"
	"github.com/orlop/orlop/kubelet/status"
)

// Config is what a Kubelet works with.
type Config struct {
	Node      string // its name
	Root      podfiles.Dir
	Spec      spec.Node
	Runtime   *runtime.Client
	Client    *cluster.Client // nil without an API server
	Events    record.EventRecorder
	Objects   Objects
	Volumes   Volumes
	Cgroups   *cgroup.Manager
	NodeState func() NodeState
	Sysctls   []string // allowedUnsafeSysctls
	Timing    Timing
	Pulls     int // images at a time; 0 for no limit
	Logins    []image.Source
	UserIDs   *podfiles.UserIDs
	Sources   []func(ctx context.Context, sink source.Sink)
	Names     []string // of the sources: pods that no source has are not ended before each has been read once
	Metrics   Metrics
	Log       *slog.Logger
}

// Metrics counts what is done for pods.
type Metrics interface {
	PodWorked(operation string, took time.Duration)
	PodStarted(took time.Duration)
	Listed(took time.Duration)
}

// Timing is what of the configuration bears on pods.
type Timing struct {
	Sync       time.Duration // syncFrequency: a pod is looked at after so long even if nothing happened
	FirstDelay time.Duration // of a crash loop
	LastDelay  time.Duration
}

// NodeState is the node as admission sees it.
type NodeState struct {
	Object       *v1.Node // nil without an API server
	Allocatable  v1.ResourceList
	IPs          []net.IP
	Pressure     admit.Pressure
	ShuttingDown bool
	// NetworkReady is an error while the runtime can't start pods, which only those on the host network survive.
	NetworkReady error
}

// Objects gets what pods refer to. Register is told of every pod that may ask, before it asks.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*v1.Secret, error)
	Services(ctx context.Context, namespace string) ([]*v1.Service, error)
	Register(p *v1.Pod)
	Unregister(uid types.UID)
}

// Volumes makes, shows and removes the volumes of pods.
type Volumes interface {
	Setup(ctx context.Context, p *v1.Pod) error
	Mounts(p *v1.Pod, c *v1.Container, variable func(name string) (string, bool)) ([]*cri.Mount, error)
	Devices(p *v1.Pod, c *v1.Container) ([]*cri.Device, error)
	TearDown(ctx context.Context, uid types.UID) error
	Orphans(ctx context.Context, known map[types.UID]bool) error
}

// Kubelet keeps pods.
type Kubelet struct {
	cfg     Config
	log     *slog.Logger
	reader  *runtime.Reader
	watcher *runtime.Watcher
	status  *status.Manager
	probes  *probe.Manager
	hooks   *lifecycle.Runner
	images  *image.Puller
	crashes *backoff.Delays
	pods    *registry
	changes bell // rings when a pod is not as it was

	admitting sync.Mutex // one pod is let in at a time, so that two do not take the same room

	nameOnce    sync.Mutex
	runtimeName string // guarded by nameOnce; "" until the runtime has told it
}

// New makes a Kubelet; Run starts it.
func New(cfg Config) *Kubelet {
	k := &Kubelet{
		cfg: cfg, log: cfg.Log,
		reader:  runtime.NewReader(cfg.Runtime),
		status:  status.NewManager(cfg.Client, cfg.Log),
		crashes: backoff.New(cfg.Timing.FirstDelay, cfg.Timing.LastDelay),
	}
	k.pods = newRegistry(k)
	k.watcher = runtime.NewWatcher(k.reader, k.runtimeChanged, cfg.Metrics.Listed, cfg.Log)
	k.probes = probe.New(probe.Config{Exec: k.Exec, Changed: k.pods.wake, Event: k.containerEvent, Log: cfg.Log})
	k.hooks = lifecycle.New(lifecycle.Config{Exec: k.Exec, Event: func(p *v1.Pod, kind, reason, message string) {
		k.cfg.Events.Event(p, kind, reason, message)
	}, Log: cfg.Log})
	k.images = image.New(image.Config{Images: cfg.Runtime.Images, Secrets: cfg.Objects, Events: cfg.Events, AtOnce: cfg.Pulls, Node: cfg.Logins})
	return k
}

// Run keeps pods until ctx ends. Containers go on without it.
func (k *Kubelet) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { k.watcher.Run(ctx) })
	all.Go(func() { k.status.Run(ctx) })
	all.Go(func() { k.housekeep(ctx) })
	k.pods.start(ctx)
	for _, follow := range k.cfg.Sources {
		all.Go(func() { follow(ctx, k.pods) })
	}
	all.Wait()
	k.pods.wait()
	k.probes.Close()
}

// Healthy is an error while pods can't be kept.
func (k *Kubelet) Healthy() error { return k.watcher.Healthy() }

// Wake looks at a pod soon: something that it depends on has changed.
func (k *Kubelet) Wake(uid types.UID) { k.pods.wake(uid) }

// runtimeChanged is told of pods in which the runtime saw something happen, those that no source has among them.
func (k *Kubelet) runtimeChanged(uid types.UID, at time.Time) {
	if w := k.pods.find(uid); w != nil {
		w.stir(at)
	}
}

// Probes are what probes have found out.
func (k *Kubelet) Probes() *probe.Manager { return k.probes }

// execMargin is what a runtime gets beyond a command's time to say that it ended it.
const execMargin = 30 * time.Second

// Exec runs a command in a container, for at most timeout unless that is 0.
func (k *Kubelet) Exec(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (out []byte, code int, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout+execMargin)
		defer cancel()
	}
	reply, err := k.cfg.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: containerID, Cmd: cmd, Timeout: int64(timeout.Seconds())})
	if err != nil {
		return nil, 0, err
	}
	return append(reply.Stdout, reply.Stderr...), int(reply.ExitCode), nil
}

// name is the runtime's, for container IDs: NAME://ID.
func (k *Kubelet) name(ctx context.Context) (string, error) {
	k.nameOnce.Lock()
	defer k.nameOnce.Unlock()
	if k.runtimeName == "" {
		v, err := k.cfg.Runtime.Version(ctx, &cri.VersionRequest{})
		if err != nil {
			return "", fmt.Errorf("runtime version: %w", err)
		}
		if v.RuntimeName == "" {
			return "", errors.New("runtime version: the runtime does not tell its name")
		}
		k.runtimeName = v.RuntimeName
	}
	return k.runtimeName, nil
}
