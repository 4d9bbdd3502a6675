package shutdown

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orlop/orlop/test/kernel"
	fake "github.com/orlop/orlop/test/logind"
)

// patience is how long what should take a second at most may take.
const patience = 20 * time.Second

// newLogind is a real bus with a small logind, which this process finds.
func newLogind(t *testing.T, delay time.Duration) *fake.Logind {
	t.Helper()
	kernel.Require(t, kernel.Command("dbus-daemon"))
	dir, err := os.MkdirTemp("", "bus") // t.TempDir's path may be too long for a socket's
	if err != nil {
		t.Fatal(err)
	}
	l, err := fake.New(fake.Options{Dir: dir, Delay: delay})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Setenv(l.Env())
	return l
}

// start runs the Manager until the test ends.
func (n *node) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

var twoPeriods = []Period{{0, 2 * time.Second}, {100, time.Second}}

// TestLogind: a lock is held until all pods have ended, with a delay that is as long as all periods together; a shutdown that
// is cancelled leaves the node ready, and with a lock for the next one.
func TestLogind(t *testing.T) {
	l := newLogind(t, time.Second)
	n := newNode(t, twoPeriods, l.DropIns(), podOf("plain", 0, 30), podOf("critical", 100, 30))
	n.takes = map[string]time.Duration{"plain": 500 * time.Millisecond}
	n.start(t)
	await(t, "the lock", func() bool { return l.Held() == 1 })
	if asked := l.Asked(); !slices.Equal(asked, []string{"shutdown by kubelet: delay"}) {
		t.Errorf("asked for %q", asked)
	}
	if d := l.MaxDelay(); d != 3*time.Second {
		t.Errorf("the delay is %s", d)
	}
	if text, err := os.ReadFile(filepath.Join(l.DropIns(), "99-kubelet.conf")); err != nil || !strings.HasSuffix(string(text), "[Login]\nInhibitDelayMaxSec=3\n") {
		t.Errorf("the drop-in is %q, %v", text, err)
	}
	for range 2 {
		took, err := l.Shutdown()
		if err != nil || took < 500*time.Millisecond {
			t.Fatalf("the shutdown waited %s, %v", took, err)
		}
		if n.Healthy() == nil || n.Healthy().Error() != "node is shutting down" {
			t.Errorf("the node is %v", n.Healthy())
		}
		if err := l.Prepare(false); err != nil {
			t.Fatal(err)
		}
		await(t, "the lock, anew", func() bool { return l.Held() == 1 && n.Healthy() == nil })
		await(t, "what follows", func() bool {
			return slices.ContainsFunc(n.notes(), func(s string) bool { return strings.HasSuffix(s, "resumed") })
		})
		n.mu.Lock()
		n.log = nil
		n.mu.Unlock()
	}
}

// TestLongDelay: a delay that is long enough stays as it is.
func TestLongDelay(t *testing.T) {
	l := newLogind(t, time.Minute)
	newNode(t, twoPeriods, l.DropIns()).start(t)
	await(t, "the lock", func() bool { return l.Held() == 1 })
	if files, err := os.ReadDir(l.DropIns()); err != nil || len(files) > 0 {
		t.Errorf("%v, %v", files, err)
	}
}

// TestShortDelay: where the delay can't be raised, the lock is taken as it is.
func TestShortDelay(t *testing.T) {
	l := newLogind(t, time.Second)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	newNode(t, twoPeriods, filepath.Join(file, "below"), podOf("plain", 0, 30)).start(t)
	await(t, "the lock", func() bool { return l.Held() == 1 })
}

// TestBusLost: the lock is held while the bus or logind is away, and what happened meanwhile is seen afterwards.
func TestBusLost(t *testing.T) {
	l := newLogind(t, time.Minute)
	n := newNode(t, twoPeriods, l.DropIns(), podOf("plain", 0, 30))
	n.start(t)
	await(t, "the lock", func() bool { return l.Held() == 1 })
	for i, lose := range []struct {
		away func() error
		back func() error
	}{
		{l.Go, l.Come},
		{l.StopBus, func() error {
			if err := l.StartBus(); err != nil {
				return err
			}
			return l.Come()
		}},
	} {
		if err := lose.away(); err != nil {
			t.Fatal(err)
		}
		if held := l.Held(); held != 1 {
			t.Errorf("%d: %d locks are held while it is away", i, held)
		}
		if err := lose.back(); err != nil {
			t.Fatal(err)
		}
		await(t, "another lock instead of the first", func() bool { return len(l.Asked()) == i+2 && l.Held() == 1 })
	}
	if err := l.Go(); err != nil {
		t.Fatal(err)
	}
	if err := l.Prepare(true); err != nil { // which nobody hears
		t.Fatal(err)
	}
	if err := l.Come(); err != nil {
		t.Fatal(err)
	}
	await(t, "the shutdown that began while logind was away", func() bool { return n.Begun() && l.Held() == 0 })
}

// TestNoLogind: a machine without logind, or without a bus, is none that can't run pods; one that comes later is found.
func TestNoLogind(t *testing.T) {
	l := newLogind(t, time.Minute)
	if err := l.Go(); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, twoPeriods, l.DropIns())
	n.start(t)
	time.Sleep(100 * time.Millisecond)
	if err := n.Healthy(); err != nil {
		t.Error(err)
	}
	if err := l.Come(); err != nil {
		t.Fatal(err)
	}
	await(t, "the lock", func() bool { return l.Held() == 1 })
}

// TestOff: without periods nobody looks for a bus.
func TestOff(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
	done := make(chan struct{})
	go func() {
		defer close(done)
		newNode(t, nil, "").Run(t.Context())
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("Run waits")
	}
}

// TestTimes: what kubelet has kept is read.
func TestTimes(t *testing.T) {
	file := filepath.Join(t.TempDir(), StateFile)
	if got, err := readTimes(file); err != nil || !got.Start.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(file, []byte(`{"startTime":"2026-01-02T03:04:05.6+01:00","endTime":"0001-01-01T00:00:00Z"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := readTimes(file); err != nil || got.Start.Unix() != 1767319445 || !got.End.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readTimes(file); err == nil {
		t.Error("half a file was read")
	}
}
