package main

import (
	"context"
	"path/filepath"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/evict"
	"github.com/orlop/orlop/kubelet/imagegc"
	"github.com/orlop/orlop/kubelet/node"
	"github.com/orlop/orlop/kubelet/shutdown"
	"github.com/orlop/orlop/kubelet/stats"
)

// makeCare makes what takes care of the node: measurements, eviction, the removal of images and the end of pods before a
// shutdown.
func (p *parts) makeCare(context.Context) error {
	c := p.config
	p.stats = stats.New(stats.Config{
		Node: p.name, Runtime: p.runtime, Images: p.runtime.Images, Pods: p.kubelet.Pods, Volumes: p.volumes.Usage, RootDir: p.flags.RootDir,
		PodLogs: c.PodLogsDir, PodsDir: p.cgroups.PodsPath(), Log: p.log,
	})
	p.metrics.MustRegister(p.stats.Claims())
	p.images = imagegc.New(imagegc.Config{
		Runtime:     imagegc.Runtime{Images: p.runtime.Images, Containers: p.runtime},
		HighPercent: int(*c.ImageGCHighThresholdPercent), LowPercent: int(*c.ImageGCLowThresholdPercent),
		MinAge: c.ImageMinimumGCAge.Duration, MaxAge: c.ImageMaximumGCAge.Duration, Log: p.log,
		Failed: func(err error) {
			p.events.Event(node.Reference(p.name), v1.EventTypeWarning, "ImageGCFailed", err.Error())
		},
	})
	hard, err := evict.Parse(c.EvictionHard, nil, c.EvictionMinimumReclaim)
	if err != nil {
		return err
	}
	soft, err := evict.Parse(c.EvictionSoft, c.EvictionSoftGracePeriod, c.EvictionMinimumReclaim)
	if err != nil {
		return err
	}
	p.evict = evict.New(evict.Config{
		Hard: hard, Soft: soft, Transition: c.EvictionPressureTransitionPeriod.Duration, SoftGrace: int64(c.EvictionMaxPodGracePeriod),
		IsolateDisk: *c.LocalStorageCapacityIsolation, Stats: p.stats, Pods: p.kubelet.RunningPods, End: p.kubelet.End, Ending: p.kubelet.Ending,
		FreeDisk: func(ctx context.Context) (uint64, error) { return p.images.RemoveUnused(ctx) },
		Used:     func(of *v1.Pod, volume string) (int64, error) { return p.volumes.Used(of.UID, volume) },
		Changed:  p.nodeChanged, Log: p.log,
	})
	p.makeEnd()
	return nil
}

func (p *parts) makeEnd() {
	p.end = shutdown.New(shutdown.Config{
		Periods: shutdown.Periods(&p.config.KubeletConfiguration), Pods: p.kubelet.ActivePods, End: p.kubelet.Terminate,
		Resumed: func() { p.kubelet.BeginAnew(shutdown.Terminated, shutdown.Refused) }, Changed: p.nodeChanged,
		Event: func(message string) {
			p.events.Event(node.Reference(p.name), v1.EventTypeNormal, "Shutdown", message)
		},
		Timed: p.metrics.Shutdown, State: filepath.Join(p.flags.RootDir, shutdown.StateFile), DropIns: shutdown.DropIns, Log: p.log,
	})
}

// nodeChanged has the node's status told at once.
func (p *parts) nodeChanged() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}
