// Package probe runs the startup, liveness and readiness probes of a node's pods, and says from their results which
// containers have started, are ready, or must be killed. When an attempt is made is in schedule.go, what it is made of
// in package check.
//
// One goroutine serves one probe of one running container, and ends when there is nothing left to find out: when the
// startup probe is decided, or liveness has failed. All state is under Manager.mu, which is not held during attempts,
// events or Changed.
package probe

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/probe/check"
)

// Kind is what a probe is for.
type Kind int

// The kinds of probes.
const (
	Startup Kind = iota
	Liveness
	Readiness
)

var kinds = [...]Kind{Startup, Liveness, Readiness}

func (k Kind) String() string { return [...]string{"Startup", "Liveness", "Readiness"}[k] }

// of is nil for a container without such a probe.
func (k Kind) of(c *v1.Container) *v1.Probe {
	return [...]*v1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe}[k]
}

// Reasons of events, as kubelet has them.
const (
	UnhealthyReason = "Unhealthy"
	WarningReason   = "ProbeWarning"
)

// Config is what a Manager needs.
type Config struct {
	Exec    check.ExecFunc
	Changed func(uid types.UID) // called when a result has changed; must not block
	Event   func(pod *v1.Pod, container *v1.Container, eventType, reason, message string)
	Log     *slog.Logger
	Rand    func() float64 // in [0, 1); nil is math/rand
}

// Manager runs the probes of a node.
type Manager struct {
	cfg    Config
	prober check.Prober
	start  time.Time
	wg     sync.WaitGroup

	mu      sync.Mutex
	pods    map[types.UID]*podProbes
	results map[resultKey]result // no entry before the first result that counts
}

type resultKey struct {
	containerID string
	kind        Kind
}

type result struct {
	success bool
	verdict *Verdict // of a failure that asks for a kill
}

// podProbes are the probes of one pod, over all restarts of its containers.
type podProbes struct {
	pod      *v1.Pod
	stopping bool // only readiness counts now
	slots    map[slotKey]*slot
}

type slotKey struct {
	container string
	kind      Kind
}

// slot is one probe of one container name.
type slot struct {
	containerID string  // which the worker and the result are about
	worker      *worker // nil while nothing is to be found out
	counts      [3]uint64
}

// New makes a manager without pods.
func New(cfg Config) *Manager {
	if cfg.Rand == nil {
		cfg.Rand = rand.Float64
	}
	return &Manager{
		cfg: cfg, prober: check.Prober{Exec: cfg.Exec}, start: time.Now(),
		pods: map[types.UID]*podProbes{}, results: map[resultKey]result{},
	}
}

// view is one container of a pod as Sync and Apply see it.
type view struct {
	pod       *v1.Pod
	status    *v1.PodStatus
	container *v1.Container
	cs        *v1.ContainerStatus
}

func (v view) id() string { return bareID(v.cs.ContainerID) }

// Sync is told the pod's status after it was computed. It begins to probe containers that run now, and stops for those
// that do not. A pod that is being deleted keeps its readiness probes only.
func (m *Manager) Sync(p *v1.Pod, status *v1.PodStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c, kind := range pod.Containers(p) {
		if kind != pod.Main && kind != pod.Sidecar {
			continue
		}
		v := view{p, status, c, pod.ContainerStatus(status, c.Name)}
		if v.cs == nil {
			v.cs = &v1.ContainerStatus{}
		}
		for _, k := range kinds {
			if k.of(c) != nil {
				m.syncLocked(m.podLocked(p), v, k)
			}
		}
	}
}

func (m *Manager) podLocked(p *v1.Pod) *podProbes {
	pp := m.pods[p.UID]
	if pp == nil {
		pp = &podProbes{slots: map[slotKey]*slot{}}
		m.pods[p.UID] = pp
	}
	pp.pod = p
	if p.DeletionTimestamp != nil {
		m.stopLivenessLocked(pp)
	}
	return pp
}

func (m *Manager) syncLocked(pp *podProbes, v view, k Kind) {
	key := slotKey{v.container.Name, k}
	s := pp.slots[key]
	if s == nil {
		s = &slot{}
		pp.slots[key] = s
	}
	if s.containerID != v.id() {
		m.clearLocked(s, k)
		s.containerID = v.id()
	}
	switch wanted := m.wantedLocked(pp, v, k); {
	case !wanted:
		s.stop()
	case s.worker == nil:
		s.worker = m.startLocked(s, v, k)
	default:
		s.worker.target.PodIP = v.status.PodIP
	}
}

// wantedLocked says whether there is something to find out by this probe now.
func (m *Manager) wantedLocked(pp *podProbes, v view, k Kind) bool {
	switch {
	case v.cs.State.Running == nil || v.id() == "" || pod.IsTerminal(v.status.Phase):
		return false
	case pp.stopping && k != Readiness:
		return false
	case v.status.PodIP == "" && check.NeedsIP(k.of(v.container)):
		return false
	}
	result, known := m.results[resultKey{v.id(), k}]
	started := m.startedLocked(v)
	switch k {
	case Startup:
		return !known && !started
	case Liveness:
		return started && !(known && !result.success) // a failure stands until there is another container
	}
	return started
}

func (m *Manager) startLocked(s *slot, v view, k Kind) *worker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{
		m: m, slot: s, kind: k, spec: k.of(v.container), pod: v.pod, cancel: cancel, poke: make(chan struct{}, 1),
		target: check.Target{Container: v.container, ContainerID: s.containerID, PodIP: v.status.PodIP},
	}
	w.times = newSchedule(k, w.spec, scheduleInput{
		now: time.Now(), startedAt: v.cs.State.Running.StartedAt.Time, adopted: m.adopted(v.cs), managerStart: m.start, rand: m.cfg.Rand,
	})
	m.wg.Go(func() { w.run(ctx) })
	return w
}

// adopted is true for a container that ran before this process did. The API rounds times down to seconds.
func (m *Manager) adopted(cs *v1.ContainerStatus) bool {
	return cs.State.Running.StartedAt.Time.Before(m.start.Truncate(time.Second))
}

func (m *Manager) clearLocked(s *slot, k Kind) {
	s.stop()
	delete(m.results, resultKey{s.containerID, k})
}

func (s *slot) stop() {
	if s.worker != nil {
		s.worker.cancel()
		s.worker = nil
	}
}

// StopLiveness ends the liveness and startup probes of a pod for good, since its containers are about to be stopped.
// What startup probes found so far stays: a container that has not started does not become ready by being deleted.
func (m *Manager) StopLiveness(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if pp := m.pods[uid]; pp != nil {
		m.stopLivenessLocked(pp)
	}
}

func (m *Manager) stopLivenessLocked(pp *podProbes) {
	if pp.stopping {
		return
	}
	pp.stopping = true
	for key, s := range pp.slots {
		if key.kind == Readiness {
			continue
		}
		s.stop()
		if r, known := m.results[resultKey{s.containerID, key.kind}]; known {
			m.results[resultKey{s.containerID, key.kind}] = result{success: r.success} // nobody is to be killed for it now
		}
	}
}

// Remove ends all probes of a pod and forgets it.
func (m *Manager) Remove(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.removeLocked(uid)
}

func (m *Manager) removeLocked(uid types.UID) {
	pp := m.pods[uid]
	if pp == nil {
		return
	}
	for key, s := range pp.slots {
		m.clearLocked(s, key.kind)
	}
	delete(m.pods, uid)
}

// Close removes all pods and waits for attempts under way.
func (m *Manager) Close() {
	m.mu.Lock()
	for uid := range m.pods {
		m.removeLocked(uid)
	}
	m.mu.Unlock()
	m.wg.Wait()
}

// Verdict asks for a container to be killed.
type Verdict struct {
	Kind         Kind
	Message      string // "Container NAME failed liveness probe"
	GraceSeconds *int64 // of the probe, for this kill; nil is the pod's
}

// Failed says whether a liveness or startup probe of the container has failed. containerID may have its runtime's
// prefix or not.
func (m *Manager) Failed(containerID string) (Verdict, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range []Kind{Liveness, Startup} {
		if v := m.results[resultKey{bareID(containerID), k}].verdict; v != nil {
			return *v, true
		}
	}
	return Verdict{}, false
}

// bareID is "ID" of "RUNTIME://ID".
func bareID(id string) string {
	if _, bare, ok := strings.Cut(id, "://"); ok {
		return bare
	}
	return id
}
