package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// rig is a manager and one pod with the container "c", on the fake clock. Attempts say what answer says at their time.
type rig struct {
	t      *testing.T
	m      *Manager
	begin  time.Time
	pod    *v1.Pod
	status *v1.PodStatus

	mu       sync.Mutex
	answer   func(kind string, at time.Duration) error // nil is success, errFail exit code 1, another one an error
	takes    time.Duration
	attempts []string // "kind seconds", "!" for a failure
	changes  int
	passed   int // changes before the last pass
	events   []string
	under    int // attempts under way
}

var errFail = errors.New("exit code 1")

func newRig(t *testing.T, c v1.Container) *rig {
	r := &rig{t: t, begin: time.Now(), answer: func(string, time.Duration) error { return nil }}
	c.Name = "c"
	for _, k := range kinds {
		if p := k.of(&c); p != nil && p.Exec == nil && p.HTTPGet == nil {
			p.Exec = &v1.ExecAction{Command: []string{strings.ToLower(k.String()[:1])}}
		}
	}
	r.pod = &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u"}, Spec: v1.PodSpec{Containers: []v1.Container{c}}}
	r.restartManager()
	r.status = &v1.PodStatus{PodIP: "192.0.2.1"}
	return r
}

func (r *rig) restartManager() {
	if r.m != nil {
		r.m.Close()
	}
	r.m = New(Config{
		Exec:    r.exec,
		Changed: func(types.UID) { r.mu.Lock(); r.changes++; r.mu.Unlock() },
		Event: func(p *v1.Pod, c *v1.Container, eventType, reason, message string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, fmt.Sprintf("%s/%s %s %s %s", p.Name, c.Name, eventType, reason, message))
		},
		Log:  slog.New(slog.DiscardHandler),
		Rand: func() float64 { return 0.5 },
	})
}

func (r *rig) at() time.Duration { return time.Since(r.begin) }

func (r *rig) exec(ctx context.Context, _ string, cmd []string, _ time.Duration) ([]byte, int, error) {
	r.mu.Lock()
	at, takes := r.at(), r.takes
	err := r.answer(cmd[0], at)
	entry := fmt.Sprintf("%s%g", cmd[0], at.Seconds())
	if err != nil {
		entry += "!"
	}
	r.attempts = append(r.attempts, entry)
	r.under++
	r.mu.Unlock()
	defer func() { r.mu.Lock(); r.under--; r.mu.Unlock() }()
	if takes > 0 {
		select {
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-time.After(takes):
		}
	}
	if errors.Is(err, errFail) {
		return []byte("out"), 1, nil
	}
	return nil, 0, err
}

// runs puts a running container into the status, as begun now.
func (r *rig) runs(id string) {
	r.status.ContainerStatuses = []v1.ContainerStatus{{
		Name: "c", ContainerID: "cri://" + id,
		State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.Now()}},
	}}
}

func (r *rig) container() *v1.ContainerStatus { return &r.status.ContainerStatuses[0] }

// pass is what a pod worker does with each new status.
func (r *rig) pass() {
	r.mu.Lock()
	r.passed = r.changes
	r.mu.Unlock()
	r.m.Apply(r.pod, r.status)
	r.m.Sync(r.pod, r.status)
}

// advance lets time go on; each change of a result makes a pass, as it would.
func (r *rig) advance(d time.Duration) {
	end := time.Now().Add(d)
	for {
		synctest.Wait()
		r.mu.Lock()
		changed := r.changes != r.passed
		r.mu.Unlock()
		switch {
		case changed:
			r.pass()
		case !time.Now().Before(end):
			return
		default:
			time.Sleep(min(50*time.Millisecond, time.Until(end)))
		}
	}
}

func (r *rig) tried() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.attempts, " ")
}

// failUntil fails all attempts before a time.
func failUntil(limit time.Duration) func(string, time.Duration) error {
	return func(_ string, at time.Duration) error {
		if at < limit {
			return errFail
		}
		return nil
	}
}

func alwaysFail(string, time.Duration) error { return errFail }

func every(seconds int32) *v1.Probe {
	return &v1.Probe{PeriodSeconds: seconds, FailureThreshold: 3, SuccessThreshold: 1, TimeoutSeconds: 1}
}

func with(p *v1.Probe, set func(p *v1.Probe)) *v1.Probe {
	set(p)
	return p
}

func delayed(seconds int32, p *v1.Probe) *v1.Probe {
	p.InitialDelaySeconds = seconds
	return p
}

// TestSemantics is the table of what a container with probes sees, and what is said of it, from its start on.
func TestSemantics(t *testing.T) {
	for _, tt := range []struct {
		name           string
		container      v1.Container
		answer         func(kind string, at time.Duration) error
		takes          time.Duration
		after          time.Duration
		tried          string // attempts: kind, seconds, "!" for a failure
		started, ready bool
		failed         string // the verdict's message
	}{
		{name: "without probes", after: time.Second, started: true, ready: true},

		// Readiness.
		{name: "readiness at once, then each period", container: v1.Container{ReadinessProbe: every(10)},
			after: 25 * time.Second, tried: "r0 r10 r20", started: true, ready: true},
		{name: "readiness of a server that takes a moment", container: v1.Container{ReadinessProbe: every(10)}, answer: failUntil(250 * time.Millisecond),
			after: 11 * time.Second, tried: "r0! r0.05! r0.15! r0.35 r10.35", started: true, ready: true},
		{name: "readiness of a slow server", container: v1.Container{ReadinessProbe: every(10)}, answer: failUntil(15 * time.Second),
			after: 25 * time.Second, tried: "r0! r0.05! r0.15! r0.35! r0.75! r1.55! r3.15! r6.35! r10! r20", started: true, ready: true},
		{name: "readiness kills nothing", container: v1.Container{ReadinessProbe: every(1)}, answer: alwaysFail,
			after: 3500 * time.Millisecond, tried: "r0! r0.05! r0.15! r0.35! r0.75! r1! r2! r3!", started: true},
		{name: "readiness after its delay", container: v1.Container{ReadinessProbe: delayed(7, every(10))},
			after: 18 * time.Second, tried: "r7 r17", started: true, ready: true},
		{name: "not ready during the delay", container: v1.Container{ReadinessProbe: delayed(7, every(10))}, after: 6 * time.Second, started: true},
		{name: "readiness wants successes in a row", container: v1.Container{ReadinessProbe: with(every(2), func(p *v1.Probe) { p.SuccessThreshold = 3 })},
			after: 3 * time.Second, tried: "r0 r2", started: true},
		{name: "readiness has them", container: v1.Container{ReadinessProbe: with(every(2), func(p *v1.Probe) { p.SuccessThreshold = 3 })},
			after: 5 * time.Second, tried: "r0 r2 r4", started: true, ready: true},
		{name: "readiness stands through two failures", container: v1.Container{ReadinessProbe: every(1)},
			answer: func(_ string, at time.Duration) error { return onlyIf(at >= time.Second) },
			after:  2500 * time.Millisecond, tried: "r0 r1! r2!", started: true, ready: true},
		{name: "readiness falls with the third", container: v1.Container{ReadinessProbe: every(1)},
			answer: func(_ string, at time.Duration) error { return onlyIf(at >= time.Second) },
			after:  3500 * time.Millisecond, tried: "r0 r1! r2! r3!", started: true},
		{name: "failures with a success between are not in a row", container: v1.Container{ReadinessProbe: every(1)},
			answer: func(_ string, at time.Duration) error { return onlyIf(at >= time.Second && at != 3*time.Second) },
			after:  5500 * time.Millisecond, tried: "r0 r1! r2! r3 r4! r5!", started: true, ready: true},

		// Liveness.
		{name: "liveness has a period for its start", container: v1.Container{LivenessProbe: every(10)},
			after: 35 * time.Second, tried: "l10 l20 l30", started: true, ready: true},
		{name: "liveness within its threshold", container: v1.Container{LivenessProbe: every(10)}, answer: alwaysFail,
			after: 29 * time.Second, tried: "l10! l20!", started: true, ready: true},
		{name: "liveness fails, and is not tried again", container: v1.Container{LivenessProbe: every(10)}, answer: alwaysFail,
			after: 60 * time.Second, tried: "l10! l20! l30!", started: true, ready: true, failed: "Container c failed liveness probe"},
		{name: "liveness after its delay", container: v1.Container{LivenessProbe: delayed(15, every(10))},
			after: 31 * time.Second, tried: "l20 l30", started: true, ready: true},
		{name: "liveness just at its delay", container: v1.Container{LivenessProbe: delayed(20, every(10))},
			after: 31 * time.Second, tried: "l20 l30", started: true, ready: true},
		{name: "an error is tried thrice and counts as nothing", container: v1.Container{LivenessProbe: with(every(10), func(p *v1.Probe) { p.FailureThreshold = 1 })},
			answer: func(string, time.Duration) error { return errors.New("runtime is down") },
			after:  15 * time.Second, tried: "l10! l10! l10!", started: true, ready: true},

		// Startup.
		{name: "startup holds back the others", container: v1.Container{StartupProbe: every(10), LivenessProbe: every(5), ReadinessProbe: every(5)},
			answer: func(kind string, _ time.Duration) error { return onlyIf(kind == "s") },
			after:  9 * time.Second, tried: "s0! s0.05! s0.15! s0.35! s0.75! s1.55! s3.15! s6.35!"},
		{name: "startup succeeds once, then the others run", container: v1.Container{StartupProbe: every(10), LivenessProbe: every(5), ReadinessProbe: every(5)},
			answer: failUntil(600 * time.Millisecond),
			after:  11 * time.Second, tried: "s0! s0.05! s0.15! s0.35! s0.75 r0.75 l5 r5.75 l10 r10.75", started: true, ready: true},
		{name: "startup has failureThreshold times the period", container: v1.Container{StartupProbe: every(1)}, answer: alwaysFail,
			after: 2900 * time.Millisecond, tried: "s0! s0.05! s0.15! s0.35! s0.75! s1! s2!"},
		{name: "startup fails", container: v1.Container{StartupProbe: every(1)}, answer: alwaysFail,
			after: 9 * time.Second, tried: "s0! s0.05! s0.15! s0.35! s0.75! s1! s2! s3!", failed: "Container c failed startup probe"},
		{name: "startup after its delay", container: v1.Container{StartupProbe: delayed(3, every(10))}, after: 20 * time.Second, tried: "s3", started: true, ready: true},

		// Time.
		{name: "one tick waits for a slow attempt, more are lost", container: v1.Container{LivenessProbe: every(10)}, takes: 25 * time.Second,
			after: 70 * time.Second, tried: "l10 l35 l60", started: true, ready: true},
		{name: "defaults of the API, for manifests that nobody defaulted", container: v1.Container{LivenessProbe: &v1.Probe{}}, answer: alwaysFail,
			after: 60 * time.Second, tried: "l10! l20! l30!", started: true, ready: true, failed: "Container c failed liveness probe"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, *tt.container.DeepCopy())
				defer r.m.Close()
				if tt.answer != nil {
					r.answer = tt.answer
				}
				r.takes = tt.takes
				r.runs("1")
				r.pass()
				r.advance(tt.after)
				if got := r.tried(); got != tt.tried {
					t.Errorf("tried %s\nwant  %s", got, tt.tried)
				}
				if c := r.container(); *c.Started != tt.started || c.Ready != tt.ready {
					t.Errorf("started %v, ready %v", *c.Started, c.Ready)
				}
				if v, failed := r.m.Failed("cri://1"); failed != (tt.failed != "") || v.Message != tt.failed {
					t.Errorf("verdict %v %+v, want %q", failed, v, tt.failed)
				}
			})
		})
	}
}

// onlyIf fails if bad.
func onlyIf(bad bool) error {
	if bad {
		return errFail
	}
	return nil
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, v1.Container{ReadinessProbe: every(2), LivenessProbe: every(3)})
		defer r.m.Close()
		r.answer = func(kind string, at time.Duration) error {
			if kind == "l" {
				return errors.New("runtime is down")
			}
			return onlyIf(at < 2500*time.Millisecond)
		}
		r.runs("1")
		r.pass()
		r.advance(5 * time.Second)
		want := []string{ // and nothing of the first second
			"p/c Warning Unhealthy Readiness probe failed: out", // 1.55
			"p/c Warning Unhealthy Readiness probe failed: out", // 2
			"p/c Warning Unhealthy Liveness probe errored and resulted in unknown state: runtime is down",
		}
		if diff := cmp.Diff(want, r.events); diff != "" {
			t.Errorf("%s\n%s", diff, r.tried())
		}
	})
}

func TestRestartedContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		grace := int64(7)
		r := newRig(t, v1.Container{
			LivenessProbe:  with(every(11), func(p *v1.Probe) { p.FailureThreshold, p.TerminationGracePeriodSeconds = 1, &grace }),
			ReadinessProbe: every(10),
		})
		defer r.m.Close()
		r.answer = func(kind string, at time.Duration) error { return onlyIf(kind == "l" && at < 20*time.Second) }
		r.runs("1")
		r.pass()
		r.advance(13 * time.Second)
		v, failed := r.m.Failed("1")
		if !failed || v.Kind != Liveness || v.GraceSeconds == nil || *v.GraceSeconds != 7 {
			t.Fatalf("%v %+v", failed, v)
		}

		r.container().State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{}}
		r.pass()
		r.advance(10 * time.Second)
		if c := r.container(); *c.Started || c.Ready {
			t.Errorf("an ended container: started %v, ready %v", *c.Started, c.Ready)
		}
		r.runs("2")
		r.pass()
		r.advance(12 * time.Second)
		if got, want := r.tried(), "r0 r10 l11! r23 r33 l34"; got != want {
			t.Errorf("tried %s, want %s", got, want)
		}
		if _, failed := r.m.Failed("1"); failed {
			t.Error("the verdict of a container that is gone is still there")
		}
		if _, failed := r.m.Failed("2"); failed {
			t.Error("the new container inherited the verdict")
		}
		if c := r.container(); !c.Ready {
			t.Error("the new container is not ready")
		}
	})
}

func TestPoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, v1.Container{ReadinessProbe: every(30)})
		defer r.m.Close()
		r.answer = failUntil(43 * time.Second)
		r.runs("1")
		r.pass()
		r.advance(35 * time.Second)
		before := r.tried()
		if !strings.HasSuffix(before, " r30!") {
			t.Fatal(before)
		}
		r.pass() // something happened in the pod
		r.advance(100 * time.Millisecond)
		r.pass() // too soon
		r.advance(9900 * time.Millisecond)
		r.pass()
		r.advance(32 * time.Second) // its ticks go on from the poke
		if got, want := strings.TrimPrefix(r.tried(), before), " r35! r45 r75"; got != want {
			t.Errorf("tried %s, want %s", got, want)
		}
		r.pass()
		r.advance(0)
		if got, want := strings.TrimPrefix(r.tried(), before), " r35! r45 r75"; got != want {
			t.Errorf("a ready container was tried again: %s, want %s", got, want)
		}
	})
}

func TestDeletion(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"StopLiveness":      func(r *rig) { r.m.StopLiveness("u") },
		"DeletionTimestamp": func(r *rig) { r.pod = r.pod.DeepCopy(); r.pod.DeletionTimestamp = new(metav1.Now()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, v1.Container{ReadinessProbe: every(10), LivenessProbe: with(every(10), func(p *v1.Probe) { p.FailureThreshold = 1 })})
				defer r.m.Close()
				r.answer = func(_ string, at time.Duration) error { return onlyIf(at > 5*time.Second) }
				r.runs("1")
				r.pass()
				r.advance(5 * time.Second)
				end(r)
				r.pass()
				r.advance(40 * time.Second)
				if got, want := r.tried(), "r0 r10! r20! r30! r40!"; got != want {
					t.Errorf("tried %s, want %s", got, want)
				}
				if c := r.container(); c.Ready || !*c.Started {
					t.Errorf("ready %v, started %v", c.Ready, *c.Started)
				}
				if v, failed := r.m.Failed("1"); failed {
					t.Errorf("a pod that is being stopped has %+v", v)
				}
			})
		})
	}
}

// TestDeletionBeforeStart: a container is not called ready because nobody waits for its start any more.
func TestDeletionBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, v1.Container{StartupProbe: every(10)})
		defer r.m.Close()
		r.answer = alwaysFail
		r.runs("1")
		r.pass()
		r.advance(5 * time.Second)
		r.m.StopLiveness("u")
		r.pass()
		r.advance(time.Minute)
		if c := r.container(); c.Ready || *c.Started {
			t.Errorf("ready %v, started %v", c.Ready, *c.Started)
		}
		if strings.Contains(r.tried(), "s10") {
			t.Errorf("tried %s", r.tried())
		}
	})
}

// TestManagerRestart: nothing flips because this process was restarted, and the probes come one after the other.
func TestManagerRestart(t *testing.T) {
	for _, from := range []string{"the pod's status", "the new status"} {
		t.Run(from, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, v1.Container{StartupProbe: every(10), ReadinessProbe: every(10), LivenessProbe: every(10)})
				defer func() { r.m.Close() }()
				r.runs("1")
				r.pass()
				r.advance(62 * time.Second)
				before := r.tried()
				r.restartManager()
				if from == "the pod's status" {
					r.pod.Status = *r.status.DeepCopy()
					r.container().ContainerID = "1" // as the runtime knows it
					r.container().Started, r.container().Ready = nil, false
				}
				r.pass()
				for _, v := range []string{"at once", "later"} {
					if c := r.container(); !*c.Started || !c.Ready {
						t.Errorf("%s: started %v, ready %v", v, *c.Started, c.Ready)
					}
					r.pod.Status = v1.PodStatus{}
					r.advance(16 * time.Second)
				}
				got := strings.Fields(strings.TrimPrefix(r.tried(), before))
				slices.Sort(got)
				if diff := cmp.Diff([]string{"l67", "l77", "l87", "r67", "r77", "r87"}, got); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestManagerRestartNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, v1.Container{StartupProbe: every(10), ReadinessProbe: every(10)})
		defer func() { r.m.Close() }()
		r.answer = alwaysFail
		r.runs("1")
		r.pass()
		r.advance(4 * time.Second)
		r.restartManager()
		r.container().Started = nil
		r.pass()
		if c := r.container(); *c.Started || c.Ready {
			t.Errorf("started %v, ready %v", *c.Started, c.Ready)
		}
		r.answer = failUntil(0)
		r.advance(6 * time.Second)
		if c := r.container(); !*c.Started || !c.Ready {
			t.Errorf("after its probes: started %v, ready %v; %s", *c.Started, c.Ready, r.tried())
		}
	})
}

func TestRemoveEndsAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, v1.Container{ReadinessProbe: every(10)})
		r.takes = time.Hour
		r.runs("1")
		r.pass()
		r.advance(time.Second)
		if r.under != 1 {
			t.Fatalf("%d attempts under way", r.under)
		}
		r.m.Remove("u")
		synctest.Wait()
		if r.under != 0 || r.changes != 0 || len(r.events) != 0 {
			t.Errorf("%d attempts under way, %d changes, events %q", r.under, r.changes, r.events)
		}
		if len(r.m.pods) != 0 || len(r.m.results) != 0 {
			t.Errorf("left: %v %v", r.m.pods, r.m.results)
		}
		r.m.Close()
	})
}

func TestWaitsForPodIP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, v1.Container{ReadinessProbe: with(every(10), func(p *v1.Probe) { p.HTTPGet = &v1.HTTPGetAction{} })})
		defer r.m.Close()
		r.status.PodIP = ""
		r.runs("1")
		r.pass()
		r.advance(time.Second)
		if w := r.m.pods["u"].slots[slotKey{"c", Readiness}].worker; w != nil {
			t.Error("a pod without an address is probed")
		}
	})
}

func TestSidecarsAndInitContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, v1.Container{})
		defer r.m.Close()
		always := v1.ContainerRestartPolicyAlways
		startup := with(every(1), func(p *v1.Probe) { p.Exec = &v1.ExecAction{Command: []string{"s"}} })
		r.pod.Spec.InitContainers = []v1.Container{{Name: "done"}, {Name: "broken"}, {Name: "side", RestartPolicy: &always, StartupProbe: startup}}
		r.status.InitContainerStatuses = []v1.ContainerStatus{
			{Name: "done", ContainerID: "cri://a", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{}}},
			{Name: "broken", ContainerID: "cri://b", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: 2}}},
			{Name: "side", ContainerID: "cri://c", State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.Now()}}},
		}
		r.answer = alwaysFail
		r.pass()
		r.advance(5 * time.Second)
		type state struct {
			Name           string
			Started, Ready bool
		}
		var got []state
		for _, cs := range r.status.InitContainerStatuses {
			got = append(got, state{cs.Name, *cs.Started, cs.Ready})
		}
		if diff := cmp.Diff([]state{{"done", false, true}, {"broken", false, false}, {"side", false, false}}, got); diff != "" {
			t.Error(diff)
		}
		if v, failed := r.m.Failed("c"); !failed || v.Message != "Init container side failed startup probe" {
			t.Errorf("%v %+v", failed, v)
		}
	})
}
