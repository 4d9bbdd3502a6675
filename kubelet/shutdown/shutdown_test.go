package shutdown

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/status"
)

// node is what the Manager of a test keeps.
type node struct {
	*Manager
	pods []*v1.Pod
	// takes is how long a pod needs to end, by name.
	takes map[string]time.Duration

	mu    sync.Mutex
	begun time.Time
	log   []string // what happened, each with the seconds since begun
	times times
}

func newNode(t *testing.T, periods []Period, dropIns string, pods ...*v1.Pod) *node {
	n := &node{pods: pods, takes: map[string]time.Duration{}, begun: time.Now()}
	n.Manager = New(Config{
		Periods: periods, Pods: func() []*v1.Pod { return n.pods }, End: n.end,
		Resumed: func() { n.note("resumed") }, Changed: func() { n.note("ready: %v", n.Healthy() == nil) }, Event: func(string) {},
		Timed: func(begin, end time.Time) {
			n.mu.Lock()
			n.times = times{begin, end}
			n.mu.Unlock()
		},
		State: filepath.Join(t.TempDir(), StateFile), DropIns: dropIns, Log: slog.New(slog.DiscardHandler),
	})
	return n
}

func (n *node) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = append(n.log, fmt.Sprintf("%.0f ", time.Since(n.begun).Seconds())+fmt.Sprintf(format, args...))
}

func (n *node) notes() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.log)
}

// end is the end of a pod: it runs for as long as it takes, or until it is killed.
func (n *node) end(ctx context.Context, p *v1.Pod, final status.Final, graceSeconds int64) error {
	n.note("%s ends within %d as %s by %s", p.Name, graceSeconds, final.Reason, final.Condition.Reason)
	select {
	case <-time.After(min(n.takes[p.Name], time.Duration(graceSeconds)*time.Second)):
		n.note("%s ended", p.Name)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *node) want(t *testing.T, want ...string) {
	t.Helper()
	if got := n.notes(); !slices.Equal(got, want) {
		t.Errorf("it went\n%q, want\n%q", got, want)
	}
}

// TestOrder: one group after the other, each as soon as the one before has ended, and a group without pods takes no time.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, []Period{{0, 20 * time.Second}, {50, time.Minute}, {100, 10 * time.Second}}, "",
			podOf("critical", 100, 30), podOf("plain", 0, 30), podOf("small", 0, 5))
		n.takes = map[string]time.Duration{"critical": 3 * time.Second, "plain": 7 * time.Second, "small": 2 * time.Second}
		n.begin(t.Context())
		if n.Healthy() == nil || !n.Begun() {
			t.Error("the node is ready")
		}
		<-n.round.done
		slices.Sort(n.log[1:3]) // they begin side by side
		n.want(t, "0 ready: false", "0 plain ends within 20 as Terminated by TerminationByKubelet", "0 small ends within 5 as Terminated by TerminationByKubelet",
			"2 small ended", "7 plain ended", "7 critical ends within 10 as Terminated by TerminationByKubelet", "10 critical ended")
		if n.times.End.Sub(n.times.Start) != 10*time.Second {
			t.Errorf("times: %+v", n.times)
		}
		if kept, err := readTimes(n.cfg.State); err != nil || !kept.End.Equal(n.times.End) {
			t.Errorf("kept: %+v, %v", kept, err)
		}
	})
}

// TestLatePod: a pod that has not ended when its period is over holds nobody up.
func TestLatePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, []Period{{0, 4 * time.Second}, {100, 0}}, "", podOf("late", 0, 30), podOf("critical", 100, 30))
		n.cfg.End = func(ctx context.Context, p *v1.Pod, final status.Final, graceSeconds int64) error {
			n.note("%s within %d", p.Name, graceSeconds)
			<-ctx.Done()
			return ctx.Err()
		}
		n.begin(t.Context())
		<-n.round.done
		n.want(t, "0 ready: false", "0 late within 4", "4 critical within 0")
		if n.times.End.Sub(n.times.Start) != 4*time.Second {
			t.Errorf("times: %+v", n.times)
		}
	})
}

// TestBreakOff: groups whose turn has not come when a shutdown is cancelled are left alone.
func TestBreakOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, []Period{{0, 10 * time.Second}, {100, 10 * time.Second}}, "", podOf("plain", 0, 30), podOf("critical", 100, 30))
		n.takes = map[string]time.Duration{"plain": 9 * time.Second}
		n.begin(t.Context())
		n.begin(t.Context()) // told twice
		time.Sleep(3 * time.Second)
		n.stop()
		n.want(t, "0 ready: false", "0 plain ends within 10 as Terminated by TerminationByKubelet")
	})
}
