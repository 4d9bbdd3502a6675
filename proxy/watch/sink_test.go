package watch

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// recorder is a sink that remembers.
type recorder struct {
	mu       sync.Mutex
	calls    []string // oldest first
	services map[model.Name]*model.Service
	slices   map[[2]model.Name]*model.Slice
	node     Node
	cidrs    []netip.Prefix
	synced   [Kinds]int
	told     chan struct{}
}

func newRecorder() *recorder {
	return &recorder{services: map[model.Name]*model.Service{}, slices: map[[2]model.Name]*model.Slice{}, told: make(chan struct{}, 1)}
}

// call notes what was said.
func (r *recorder) call(format string, args ...any) {
	r.mu.Lock()
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

func (r *recorder) done() {
	r.mu.Unlock()
	select {
	case r.told <- struct{}{}:
	default:
	}
}

func (r *recorder) SetService(s *model.Service) {
	r.call("set service %s", s.Name)
	defer r.done()
	r.services[s.Name] = s
}

func (r *recorder) DeleteService(name model.Name) {
	r.call("delete service %s", name)
	defer r.done()
	delete(r.services, name)
}

func (r *recorder) SetSlice(s *model.Slice) {
	r.call("set slice %s of %s", s.Name, s.Service)
	defer r.done()
	r.slices[[2]model.Name{s.Service, s.Name}] = s
}

func (r *recorder) DeleteSlice(service, slice model.Name) {
	r.call("delete slice %s of %s", slice, service)
	defer r.done()
	delete(r.slices, [2]model.Name{service, slice})
}

func (r *recorder) SetNode(node Node) {
	r.call("set node %s", node.Name)
	defer r.done()
	r.node = node
}

func (r *recorder) SetServiceCIDRs(cidrs []netip.Prefix) {
	r.call("set service CIDRs %v", cidrs)
	defer r.done()
	r.cidrs = cidrs
}

func (r *recorder) Triggered(at time.Time) {
	r.call("triggered %s", at.UTC().Format(time.RFC3339Nano))
	r.done()
}

func (r *recorder) Synced(kind Kind) {
	r.call("synced %s", kind)
	defer r.done()
	r.synced[kind]++
}

// take returns what was said since the last time.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

// await waits until what is known is as a test wants it.
func (r *recorder) await(t testing.TB, what string, is func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	again := time.NewTicker(20 * time.Millisecond) // for what others than the recorder know
	defer again.Stop()
	for {
		r.mu.Lock()
		ok := is()
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.told:
		case <-again.C:
		case <-limit:
			t.Fatalf("%s: not so within 20 s; said was:\n%s", what, strings.Join(r.take(), "\n"))
		}
	}
}

func (r *recorder) awaitSynced(t testing.TB) {
	t.Helper()
	r.await(t, "synced", func() bool { return !slices.Contains(r.synced[:], 0) })
}

func (r *recorder) allSynced() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !slices.Contains(r.synced[:], 0)
}

// run runs a source for the time of a test.
func run(t testing.TB, source Source) *recorder {
	t.Helper()
	r := newRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := source.Run(ctx, r); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); all.Wait() })
	return r
}

// logOf is a log that a test can read.
func logOf(t testing.TB) (*slog.Logger, *logText) {
	text := &logText{}
	return slog.New(slog.NewTextHandler(text, &slog.HandlerOptions{Level: slog.LevelDebug})), text
}

type logText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
