package evict

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/status"
)

// period is how often the node is looked at; kubelet's is the same.
const period = 10 * time.Second

// endTime is what the end of a pod takes beyond its grace. One that takes longer is not waited for.
const endTime = 30 * time.Second

// Stats measures.
type Stats interface {
	Levels(ctx context.Context) (*stats.NodeStats, error)
	Summary(ctx context.Context) (*stats.Summary, error)
}

// Config is when pods are evicted, and how.
type Config struct {
	Hard, Soft  []Threshold
	Transition  time.Duration // evictionPressureTransitionPeriod: for how long a pressure is still told after it ended
	SoftGrace   int64         // evictionMaxPodGracePeriod: the most seconds that a pod gets at a soft threshold
	IsolateDisk bool          // localStorageCapacityIsolation: limits of ephemeral storage are enforced
	Stats       Stats
	Pods        func() []*v1.Pod // that run
	// End ends a pod; grace is in seconds, nil for the pod's own.
	End func(p *v1.Pod, final status.Final, grace *int64)
	// FreeDisk frees what of the disk can be freed without ending a pod, and tells how many bytes that were.
	FreeDisk func(ctx context.Context) (uint64, error)
	// Used is what an emptyDir volume on disk holds in bytes.
	Used func(p *v1.Pod, volume string) (int64, error)
	// Ending is true while a pod that was told to end still holds something.
	Ending  func(p *v1.Pod) bool
	Changed func() // the pressure of the node is another
	Log     *slog.Logger
}

// Pressure is what the node is short of.
type Pressure struct{ Memory, Disk, PIDs bool }

// Manager watches the node.
type Manager struct {
	cfg Config

	// Of the loop alone: the pod that was told to end last, whether without grace, and until when it is waited for.
	victim *v1.Pod
	hurry  bool
	until  time.Time

	mu    sync.Mutex
	since map[crossed]time.Time // when a signal fell below a threshold, if it still is
	last  map[Signal]time.Time  // when it last was
	told  Pressure
}

// crossed is a threshold that a signal has fallen below. Each has a time of its own: when the soft one was reached says nothing
// of the hard one.
type crossed struct {
	signal Signal
	soft   bool
}

func (t Threshold) key() crossed { return crossed{t.Signal, t.Grace > 0} }

// New makes a Manager.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, since: map[crossed]time.Time{}, last: map[Signal]time.Time{}}
}

// Pressure is what is told of the node.
func (m *Manager) Pressure() Pressure {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.told
}

// Run watches until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := m.look(ctx); err != nil && ctx.Err() == nil {
			m.cfg.Log.Warn("node not measured", "err", err)
		}
	}
}

// look measures and ends at most one pod for the node's sake: what that frees shows in the next measurement.
func (m *Manager) look(ctx context.Context) error {
	if m.cfg.IsolateDisk {
		if err := m.enforceDisk(ctx); err != nil {
			return err
		}
	}
	node, err := m.cfg.Stats.Levels(ctx)
	if node == nil {
		return err
	}
	levels := levelsOf(node)
	due := m.note(levels, time.Now())
	if due == nil {
		return nil
	}
	if m.victim != nil && m.cfg.Ending(m.victim) && time.Now().Before(m.until) {
		m.hasten(*due, levels[due.Signal])
		return nil
	}
	if due.Signal != Memory && due.Signal != ProcessIDs && m.freed(ctx, *due) {
		return nil
	}
	return m.evict(ctx, *due, levels[due.Signal])
}

func levelsOf(n *stats.NodeStats) map[Signal]Level {
	out := map[Signal]Level{}
	if n.Memory != nil && n.Memory.AvailableBytes != nil && n.Memory.WorkingSetBytes != nil {
		out[Memory] = Level{int64(*n.Memory.AvailableBytes), int64(*n.Memory.AvailableBytes + *n.Memory.WorkingSetBytes)}
	}
	disk := func(fs *stats.FsStats, space, inodes Signal) {
		if fs == nil {
			return
		}
		if fs.AvailableBytes != nil && fs.CapacityBytes != nil {
			out[space] = Level{int64(*fs.AvailableBytes), int64(*fs.CapacityBytes)}
		}
		if fs.InodesFree != nil && fs.Inodes != nil {
			out[inodes] = Level{int64(*fs.InodesFree), int64(*fs.Inodes)}
		}
	}
	disk(n.Fs, NodeDisk, NodeInodes)
	if n.Runtime != nil {
		disk(n.Runtime.ImageFs, ImageDisk, ImageInodes)
	}
	if r := n.Rlimit; r != nil && r.MaxPID != nil && r.NumOfRunningProcesses != nil {
		out[ProcessIDs] = Level{*r.MaxPID - *r.NumOfRunningProcesses, *r.MaxPID}
	}
	return out
}

// note remembers what is short, tells the pressure, and returns the first threshold that has lasted as long as it must.
func (m *Manager) note(levels map[Signal]Level, now time.Time) *Threshold {
	m.mu.Lock()
	defer m.mu.Unlock()
	short := map[crossed]bool{}
	var due *Threshold
	for _, list := range [][]Threshold{m.cfg.Hard, m.cfg.Soft} {
		for i := range list {
			t := list[i]
			_, was := m.since[t.key()]
			if !t.met(levels[t.Signal], was) {
				continue
			}
			short[t.key()] = true
			m.last[t.Signal] = now
			if !was {
				m.since[t.key()] = now
			}
			if due == nil && now.Sub(m.since[t.key()]) >= t.Grace {
				due = &t
			}
		}
	}
	for key := range m.since {
		if !short[key] {
			delete(m.since, key)
		}
	}
	m.tellLocked(now)
	return due
}

// tellLocked keeps telling a pressure for a while after it ended, so that the scheduler does not send pods to and fro.
func (m *Manager) tellLocked(now time.Time) {
	var p Pressure
	for signal, at := range m.last {
		if !at.Equal(now) && now.Sub(at) >= m.cfg.Transition {
			continue
		}
		switch signal {
		case Memory:
			p.Memory = true
		case ProcessIDs:
			p.PIDs = true
		default:
			p.Disk = true
		}
	}
	if p != m.told {
		m.told = p
		m.cfg.Changed()
	}
}

// freed is true if removing what no pod needs was enough.
func (m *Manager) freed(ctx context.Context, t Threshold) bool {
	bytes, err := m.cfg.FreeDisk(ctx)
	if err != nil {
		m.cfg.Log.Warn("disk not freed", "err", err)
	}
	if bytes == 0 {
		return false
	}
	node, err := m.cfg.Stats.Levels(ctx)
	return err == nil && !t.met(levelsOf(node)[t.Signal], true)
}

// hasten lets a pod that was given time at a soft threshold end at once when the hard one is reached.
func (m *Manager) hasten(t Threshold, level Level) {
	if t.Grace > 0 || m.hurry {
		return
	}
	m.hurry = true
	m.end(m.victim, message(t, level, ranked{pod: m.victim}), new(int64(0)))
}

// evict ends the pod that is first in order.
func (m *Manager) evict(ctx context.Context, t Threshold, level Level) error {
	summary, err := m.cfg.Stats.Summary(ctx)
	if err != nil {
		return err
	}
	ranked := rank(m.cfg.Pods(), summary, t.Signal)
	if len(ranked) == 0 {
		m.cfg.Log.Error("node is short, and there is no pod to evict", "signal", t.Signal, "available", level.Available)
		return nil
	}
	victim := ranked[0]
	grace := int64(0)
	if t.Grace > 0 {
		grace = min(m.cfg.SoftGrace, pod.GracePeriodSeconds(victim.pod))
	}
	m.victim, m.hurry, m.until = victim.pod, t.Grace == 0, time.Now().Add(time.Duration(grace)*time.Second+endTime)
	m.cfg.Log.Warn("evicting a pod", "pod", pod.Ref(victim.pod), "signal", t.Signal, "available", level.Available, "threshold", t.least(level))
	m.end(victim.pod, message(t, level, victim), &grace)
	return nil
}

func (m *Manager) end(p *v1.Pod, message string, grace *int64) {
	m.cfg.End(p, status.Final{Reason: "Evicted", Message: message, Condition: &v1.PodCondition{
		Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet, Message: message,
		ObservedGeneration: p.Generation, LastTransitionTime: metav1.NewTime(time.Now().Truncate(time.Second)),
	}}, grace)
}

func message(t Threshold, l Level, v ranked) string {
	text := fmt.Sprintf("The node was low on resource: %s. Threshold quantity: %s, available: %s. ",
		t.Signal.resource(), format(t.Signal, t.least(l)), format(t.Signal, l.Available))
	for _, c := range v.greedy {
		text += fmt.Sprintf("Container %s was using %s, request is %s, has larger consumption of %s. ",
			c.name, format(t.Signal, c.used), format(t.Signal, c.request), t.Signal.resource())
	}
	return text
}
