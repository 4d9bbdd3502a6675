// Package shutdown ends pods in good order when the machine is shut down (KEP-2000, KEP-2712). systemd-logind asks all who hold
// a delay lock before it begins, see https://systemd.io/INHIBITOR_LOCKS:
//
//	                          ┌──────── cancelled: PrepareForShutdown(false) ────────┐
//	                          ▼                                                      │
//	connect ──▶ lock taken, node Ready ──PrepareForShutdown(true)──▶ node NotReady, pods end, ──▶ lock closed
//	   ▲                      │                                      one priority after another
//	   └─ bus or logind lost ─┘
//
// The lock outlives the bus and logind, and so does the end of pods that has begun. What a connection missed is read when the
// next one begins.
package shutdown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/status"
)

// What is told of pods that a shutdown ends, and of those that it keeps out (package admit); kubelet says the same.
const (
	Terminated        = "Terminated"
	Refused           = "NodeShutdown"
	terminatedMessage = "Pod was terminated in response to imminent node shutdown."
)

// How long it takes until a bus or a logind that is away is looked for again.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// Config is how pods are ended.
type Config struct {
	Periods []Period         // none: shutdowns are not watched
	Pods    func() []*v1.Pod // that have not ended
	// End ends a pod within some seconds and returns when nothing is left of it.
	End func(ctx context.Context, p *v1.Pod, final status.Final, graceSeconds int64) error
	// Resumed is told that a shutdown was cancelled.
	Resumed func()
	Changed func()                     // the node's status is another
	Event   func(message string)       // about the node
	Timed   func(begin, end time.Time) // of the last shutdown, for metrics; end is zero while it is under way
	State   string                     // the file that keeps these times
	DropIns string                     // logind's, see the constant of this name
	Log     *slog.Logger
}

// Manager watches for shutdowns.
type Manager struct {
	cfg  Config
	want time.Duration // of delay

	mu    sync.Mutex
	down  bool     // a shutdown has begun
	lock  *os.File // nil if none is held
	round *round   // the end of pods that began last

	warned string // of Run alone: why there is no connection, as the log has it
}

// round is the end of all pods.
type round struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// New makes a Manager.
func New(cfg Config) *Manager { return &Manager{cfg: cfg, want: sum(cfg.Periods)} }

// Begun is true once the machine is being shut down.
func (m *Manager) Begun() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.down
}

// Healthy is an error while the machine is being shut down.
func (m *Manager) Healthy() error {
	if m.Begun() {
		return errors.New("node is shutting down")
	}
	return nil
}

// Run watches until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	if len(m.cfg.Periods) == 0 {
		return
	}
	m.tellLast()
	for retry := firstRetry; ctx.Err() == nil; {
		err := m.follow(ctx)
		if errors.Is(err, errLost) { // it worked
			retry = firstRetry
		}
		m.warn(ctx, err)
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
	}
	m.stop()
	m.hold(nil)
}

// warn tells once why shutdowns are not delayed.
func (m *Manager) warn(ctx context.Context, err error) {
	if ctx.Err() == nil && err.Error() != m.warned {
		m.warned = err.Error()
		m.cfg.Log.Warn("shutdowns of this machine are not seen; will be tried again", "err", err)
	}
}

// follow does what logind says until the connection is lost.
func (m *Manager) follow(ctx context.Context) error {
	l, err := connect(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	if err := m.catchUp(ctx, l); err != nil {
		return err
	}
	m.cfg.Log.Info("shutdowns of this machine wait for pods", "at_most", m.want)
	m.warned = ""
	for {
		begins, err := l.next(ctx)
		if err != nil {
			return err
		}
		if err := m.turn(ctx, l, begins); err != nil {
			return err
		}
	}
}

// catchUp brings this node to where logind is, who may have begun or cancelled a shutdown while nobody listened.
func (m *Manager) catchUp(ctx context.Context, l *logind) error {
	begins, err := l.preparing(ctx)
	if err != nil {
		return err
	}
	if !begins {
		if err := m.allow(ctx, l); err != nil {
			return err
		}
	}
	return m.turn(ctx, l, begins)
}

// allow sees to it that logind allows the delay that all periods make together. A shorter one is better than none: pods still
// begin to end in their order.
func (m *Manager) allow(ctx context.Context, l *logind) error {
	has, err := l.delay(ctx)
	if err != nil || has >= m.want {
		return err
	}
	if err := l.raise(ctx, m.want, m.cfg.DropIns); err != nil {
		m.cfg.Log.Warn("a shutdown of this machine waits for pods less long than they may take", "waits", has, "pods", m.want, "err", err)
	}
	return nil
}

func (m *Manager) turn(ctx context.Context, l *logind, begins bool) error {
	if begins {
		m.begin(ctx)
		return nil
	}
	return m.resume(ctx, l)
}

// begin ends all pods and closes the lock then.
func (m *Manager) begin(ctx context.Context) {
	m.mu.Lock()
	if m.down {
		m.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &round{cancel, make(chan struct{})}
	m.down, m.round = true, r
	m.mu.Unlock()
	m.cfg.Log.Info("the machine is being shut down")
	m.cfg.Event("Shutdown manager detected shutdown event")
	m.cfg.Changed()
	go func() {
		defer close(r.done)
		defer cancel()
		m.endAll(ctx)
		if ctx.Err() == nil {
			m.cfg.Log.Info("pods have ended; the shutdown may go on")
			m.hold(nil)
		}
	}()
}

// resume takes the lock, anew if a shutdown was cancelled. Pods whose end has begun end; those that nobody else would replace
// begin anew.
func (m *Manager) resume(ctx context.Context, l *logind) error {
	m.stop()
	lock, err := l.inhibit(ctx)
	if err != nil {
		return err
	}
	m.hold(lock)
	m.mu.Lock()
	was := m.down
	m.down = false
	m.mu.Unlock()
	if was {
		m.cfg.Log.Info("the shutdown of the machine was cancelled")
		m.cfg.Event("Shutdown manager detected shutdown cancellation")
		m.cfg.Changed()
		m.cfg.Resumed()
	}
	return nil
}

// stop breaks off the end of pods: groups that have not begun stay.
func (m *Manager) stop() {
	m.mu.Lock()
	r := m.round
	m.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.done
	}
}

// hold keeps a lock, nil for none, and then closes the one that was held.
func (m *Manager) hold(lock *os.File) {
	m.mu.Lock()
	old := m.lock
	m.lock = lock
	m.mu.Unlock()
	if old != nil {
		if err := old.Close(); err != nil {
			m.cfg.Log.Warn("shutdown lock not closed", "err", err)
		}
	}
}

// endAll ends one group of pods after the other.
func (m *Manager) endAll(ctx context.Context) {
	begin := time.Now()
	m.note(times{Start: begin})
	for _, g := range groups(m.cfg.Periods, m.cfg.Pods()) {
		if ctx.Err() == nil && len(g.pods) > 0 {
			m.endGroup(ctx, g)
		}
	}
	m.note(times{Start: begin, End: time.Now()})
}

// endGroup ends pods side by side, for as long as their period lasts. One that takes longer goes on ending beside the next
// group: it was told how long it has.
func (m *Manager) endGroup(ctx context.Context, g group) {
	ctx, cancel := context.WithTimeout(ctx, g.Grace)
	defer cancel()
	m.cfg.Log.Info("ending pods", "priority", g.Priority, "pods", len(g.pods), "within", g.Grace)
	var all sync.WaitGroup
	for _, p := range g.pods {
		all.Go(func() {
			if err := m.cfg.End(ctx, p, final(p), g.grace(p)); err != nil {
				m.cfg.Log.Warn("pod did not end in time", "pod", pod.Ref(p), "err", err)
			}
		})
	}
	all.Wait()
}

func final(p *v1.Pod) status.Final {
	return status.Final{Reason: Terminated, Message: terminatedMessage, Condition: &v1.PodCondition{
		Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet, Message: terminatedMessage,
		ObservedGeneration: p.Generation, LastTransitionTime: metav1.NewTime(time.Now().Truncate(time.Second)),
	}}
}

// note keeps and tells when pods were ended.
func (m *Manager) note(t times) {
	m.cfg.Timed(t.Start, t.End)
	if err := t.write(m.cfg.State); err != nil {
		m.cfg.Log.Warn("times of the shutdown not kept", "err", err)
	}
}

// tellLast tells of the shutdown before this boot.
func (m *Manager) tellLast() {
	t, err := readTimes(m.cfg.State)
	if err != nil {
		m.cfg.Log.Warn("times of the last shutdown not known", "err", fmt.Errorf("%s: %w", m.cfg.State, err))
		return
	}
	m.cfg.Timed(t.Start, t.End)
}
