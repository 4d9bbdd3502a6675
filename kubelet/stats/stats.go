// Package stats says what pods, containers and the node use: the Summary API of kubelet, for the eviction of pods and
// for tools, and what Prometheus and metrics-server read. What is the pods' comes from the runtime by CRI, what is the
// node's from its root cgroup, /proc and its file systems. Nothing is measured unless somebody asks.
package stats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	api "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// minAge: a summary is measured at most once in this time, however many ask.
const minAge = time.Second

// Config is what a Provider needs.
type Config struct {
	Node    string
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient
	Pods    func() []*v1.Pod                      // with their statuses
	Volumes func(uid types.UID) []api.VolumeStats // of a pod; nil if volumes are not measured
	RootDir string                                // on the node's file system, such as /var/lib/kubelet
	PodLogs string                                // /var/log/pods; "" if logs are not measured
	PodsDir string                                // cgroup of all pods below the cgroup mount, such as /kubepods; "" without one
	Cgroups string                                // "" is /sys/fs/cgroup
	Proc    string                                // "" is /proc
	Log     *slog.Logger
}

// Provider measures.
type Provider struct {
	cfg     Config
	started time.Time
	flight  singleflight.Group // all who ask while it measures get the same
	rates   rates              // of the flight

	mu     sync.Mutex
	last   *api.Summary
	lastAt time.Time
}

// New makes a provider.
func New(cfg Config) *Provider {
	if cfg.Cgroups == "" {
		cfg.Cgroups = "/sys/fs/cgroup"
	}
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	return &Provider{cfg: cfg, started: time.Now()}
}

// measureTime bounds what one measurement waits for the runtime.
const measureTime = 10 * time.Second

// Summary is never older than a second. The caller must not change it. What could not be read of the node is missing
// in it; without an answer of the runtime it is an error.
func (p *Provider) Summary(ctx context.Context) (*api.Summary, error) {
	if s := p.fresh(); s != nil {
		return s, nil
	}
	measured := p.flight.DoChan("", func() (any, error) {
		if s := p.fresh(); s != nil { // of the flight before
			return s, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), measureTime) // others wait for it, too
		defer cancel()
		return p.measure(ctx)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-measured:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*api.Summary), nil
	}
}

// fresh is nil if there is no summary, or an old one.
func (p *Provider) fresh() *api.Summary {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil || time.Since(p.lastAt) >= minAge {
		return nil
	}
	return p.last
}

func (p *Provider) measure(ctx context.Context) (*api.Summary, error) {
	p.rates.begin()
	pods, err := p.pods(ctx)
	if err != nil {
		return nil, fmt.Errorf("stats of pods: %w", err)
	}
	node, err := p.node(ctx)
	if err != nil {
		p.cfg.Log.Warn("stats of the node are incomplete", "err", err)
	}
	s := &api.Summary{Node: *node, Pods: pods}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.lastAt = s, time.Now()
	return s, nil
}

// node reads all it can; err tells what it could not.
func (p *Provider) node(ctx context.Context) (*api.NodeStats, error) {
	n := &api.NodeStats{NodeName: p.cfg.Node, StartTime: metav1.NewTime(p.started)}
	var errs [6]error
	n.CPU, n.Memory, n.Swap, errs[0] = p.cgroup("/")
	n.Fs, errs[1] = fsStats(p.cfg.RootDir)
	n.Runtime, errs[2] = p.runtime(ctx)
	n.Rlimit, errs[3] = p.rlimit()
	n.Network, errs[4] = p.network()
	if p.cfg.PodsDir != "" {
		c := api.ContainerStats{Name: api.SystemContainerPods, StartTime: n.StartTime}
		c.CPU, c.Memory, c.Swap, errs[5] = p.cgroup(p.cfg.PodsDir)
		n.SystemContainers = append(n.SystemContainers, c)
	}
	return n, errors.Join(errs[:]...)
}

// Levels are what the node may run short of: memory, disks and process IDs. They cost little, so they may be asked for often.
func (p *Provider) Levels(ctx context.Context) (*api.NodeStats, error) {
	u, err := p.read("/")
	if err != nil {
		return nil, err
	}
	meminfo, err := p.meminfo()
	if err != nil {
		return nil, err
	}
	working := u.working()
	n := &api.NodeStats{NodeName: p.cfg.Node, Memory: &api.MemoryStats{
		WorkingSetBytes: &working, AvailableBytes: new(meminfo["MemTotal"] - min(meminfo["MemTotal"], working)),
	}}
	var errs [3]error
	n.Fs, errs[0] = fsStats(p.cfg.RootDir)
	n.Runtime, errs[1] = p.runtime(ctx)
	n.Rlimit, errs[2] = p.rlimit()
	return n, errors.Join(errs[:]...)
}

// runtime are the file systems of images and of containers.
func (p *Provider) runtime(ctx context.Context) (*api.RuntimeStats, error) {
	reply, err := p.cfg.Images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("image file system: %w", err)
	}
	images, err := usedOf(reply.ImageFilesystems)
	if err != nil {
		return nil, fmt.Errorf("image file system: %w", err)
	}
	containers, err := usedOf(reply.ContainerFilesystems)
	if err != nil {
		return nil, fmt.Errorf("container file system: %w", err)
	}
	if containers == nil {
		containers = images
	}
	return &api.RuntimeStats{ImageFs: images, ContainerFs: containers}, nil
}

// usedOf is the first file system, with what the runtime says that it uses of it; nil without one.
func usedOf(list []*cri.FilesystemUsage) (*api.FsStats, error) {
	if len(list) == 0 {
		return nil, nil
	}
	fs, err := fsStats(list[0].GetFsId().GetMountpoint())
	if err != nil {
		return nil, err
	}
	fs.UsedBytes = value(list[0].UsedBytes)
	if list[0].InodesUsed != nil {
		fs.InodesUsed = value(list[0].InodesUsed)
	}
	return fs, nil
}

// value is nil for what was not measured.
func value(v *cri.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

// rates are the speeds of counters between two measurements, for runtimes that count only.
type rates struct {
	before, now map[string]sample
}

type sample struct {
	at    time.Time
	total uint64
}

// begin forgets what was not measured the last time.
func (r *rates) begin() { r.before, r.now = r.now, map[string]sample{} }

// perSecond is nil for the first measurement of a counter.
func (r *rates) perSecond(key string, at time.Time, total uint64) *uint64 {
	r.now[key] = sample{at, total}
	b, ok := r.before[key]
	if !ok || !at.After(b.at) || total < b.total {
		return nil
	}
	rate := uint64(float64(total-b.total) / at.Sub(b.at).Seconds())
	return &rate
}
