package image

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// gate holds requests for layers until it is opened, and says when the first one has come.
type gate struct {
	arrived, open chan struct{}
	once          sync.Once
}

func (r *rig) newGate(except ...string) *gate {
	g := &gate{arrived: make(chan struct{}), open: make(chan struct{})}
	r.setHook(func(_ http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		for _, e := range except {
			if strings.Contains(req.URL.Path, e) {
				return false
			}
		}
		g.once.Do(func() { close(g.arrived) })
		select {
		case <-g.open:
		case <-req.Context().Done():
		}
		return false
	})
	return g
}

// background pulls and sends the error to a channel.
func (r *rig) background(ctx context.Context, name string) chan error {
	done := make(chan error, 1)
	go func() {
		_, err := r.service.Pull(ctx, name, nil)
		done <- err
	}()
	return done
}

// waitFor waits until a condition holds that nobody announces. Each look is a request to the registry, so that the
// pulls get their turn.
func (r *rig) waitFor(what string, holds func() bool) {
	r.t.Helper()
	for !holds() {
		if r.t.Context().Err() != nil {
			r.t.Fatalf("%s never came", what)
		}
		resp, err := r.server.Client().Get(r.server.URL + "/v2/")
		if err != nil {
			r.t.Fatal(err)
		}
		resp.Body.Close()
	}
}

// shared says whether n take part in the same flight.
func shared[V any](g *group[V], n int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.flights {
		if f.refs == n {
			return true
		}
	}
	return false
}

func TestCancelLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.push("app", "v1", testImage{layers: []layerSpec{{files(t, "a", "1"), "gzip"}, {files(t, "b", "2"), "gzip"}}})
	g := r.newGate(r.configDigest("app", "v1"))
	ctx, cancel := context.WithCancel(t.Context())
	done := r.background(ctx, r.host+"/app:v1")
	<-g.arrived
	if pulls := r.service.Pulls(); len(pulls) != 1 || pulls[0].TotalBytes == 0 {
		t.Errorf("progress = %+v", pulls)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	r.wantNothing()
	close(g.open)
	r.wantPull("again", r.host+"/app:v1", nil, nil)
}

// TestPullsJoin has three callers of one pull, of which the first leaves.
func TestPullsJoin(t *testing.T) {
	r := newRig(t)
	r.push("app", "v1", small(t))
	g := r.newGate(r.configDigest("app", "v1"))
	ctx, cancel := context.WithCancel(t.Context())
	name := r.host + "/app:v1"
	first := r.background(ctx, name)
	<-g.arrived
	second, third := r.background(t.Context(), name), r.background(t.Context(), name)
	r.waitFor("a shared pull", func() bool { return shared(r.service.pulls, 3) })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	close(g.open)
	for _, c := range []chan error{second, third} {
		if err := <-c; err != nil {
			t.Error(err)
		}
	}
	if n := r.requests.Load(); n != 2 {
		t.Errorf("%d blobs were asked for, want 2: config and layer once", n)
	}
}

// TestLayersJoin pulls two images with the same lowest layer at once. The one that fetches it is cancelled; the
// other gets it all the same, and it is fetched once.
func TestLayersJoin(t *testing.T) {
	r := newRig(t)
	base := layerSpec{files(t, "base", "x"), "gzip"}
	r.push("one", "v1", testImage{layers: []layerSpec{base}})
	r.push("two", "v1", testImage{layers: []layerSpec{base, {files(t, "two", "y"), "gzip"}}})
	g := r.newGate(r.configDigest("one", "v1"), r.configDigest("two", "v1"))
	ctx, cancel := context.WithCancel(t.Context())
	one := r.background(ctx, r.host+"/one:v1")
	<-g.arrived
	two := r.background(t.Context(), r.host+"/two:v1")
	r.waitFor("a shared layer", func() bool { return shared(r.service.layers, 2) })
	cancel()
	if err := <-one; !errors.Is(err, context.Canceled) {
		t.Errorf("one: %v", err)
	}
	close(g.open)
	if err := <-two; err != nil {
		t.Errorf("two: %v", err)
	}
	if n := r.requests.Load(); n != 4 {
		t.Errorf("%d blobs were asked for, want 4: two configs and two layers", n)
	}
	r.wantPull("one", r.host+"/one:v1", nil, nil)
}

// TestASlowImageKeepsNoOtherWaiting has as many layers that do not come as one image may have under way.
func TestASlowImageKeepsNoOtherWaiting(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxParallelLayers = 2 })
	r.push("slow", "v1", testImage{layers: []layerSpec{{files(t, "a", "1"), "gzip"}, {files(t, "b", "2"), "gzip"}, {files(t, "c", "3"), "gzip"}}})
	r.push("quick", "v1", small(t))
	config, quick := r.configDigest("slow", "v1"), "/quick/"
	g := r.newGate(config, quick)
	slow := r.background(t.Context(), r.host+"/slow:v1")
	<-g.arrived
	r.waitFor("all places of one image taken", func() bool { return len(r.service.slots) == 2 })
	r.wantPull("another image", r.host+"/quick:v1", nil, nil)
	close(g.open)
	if err := <-slow; err != nil {
		t.Errorf("slow: %v", err)
	}
}

// TestJoinedLayerFails has a pull whose claim about a layer is false; another one that joined it must not suffer.
func TestJoinedLayerFails(t *testing.T) {
	r := newRig(t)
	img := small(t)
	r.push("good", "v1", img)
	other := testImage{layers: []layerSpec{{files(t, "f", "other content"), "gzip"}}}
	other.edit = edit(func(diffID *string) { *diffID = diffIDOf(img) })
	r.push("liar", "v1", other)
	g := r.newGate(r.configDigest("good", "v1"), r.configDigest("liar", "v1"))
	liar := r.background(t.Context(), r.host+"/liar:v1")
	<-g.arrived
	good := r.background(t.Context(), r.host+"/good:v1")
	r.waitFor("a shared layer", func() bool { return shared(r.service.layers, 2) })
	close(g.open)
	if err := <-liar; !errors.Is(err, ErrInvalidImage) {
		t.Errorf("liar: %v", err)
	}
	if err := <-good; err != nil {
		t.Errorf("good: %v", err)
	}
}

// edit changes the first diff ID of a config.
func edit(change func(diffID *string)) func(*imgspec.Manifest, *imgspec.Image) {
	return func(_ *imgspec.Manifest, c *imgspec.Image) {
		id := c.RootFS.DiffIDs[0].String()
		change(&id)
		c.RootFS.DiffIDs[0] = digest.Digest(id)
	}
}

func diffIDOf(img testImage) string { return digest.FromBytes(img.layers[0].tar).String() }

func TestGroup(t *testing.T) {
	dropped := 0
	g := newGroup(func(int) { dropped++ })
	started := make(chan struct{})
	f, begun := g.join("k", func(ctx context.Context) (int, error) {
		close(started)
		<-ctx.Done()
		return 0, ctx.Err()
	})
	same, again := g.join("k", nil)
	if !begun || again || same != f {
		t.Error("the second did not join")
	}
	<-started
	f.leave()
	select {
	case <-f.done:
		t.Error("ended though one stays")
	default:
	}
	f.leave()
	if _, err := f.wait(t.Context()); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	f, _ = g.join("k", func(context.Context) (int, error) { panic("hostile input") })
	if _, err := f.wait(t.Context()); err == nil || !strings.Contains(err.Error(), "hostile input") {
		t.Errorf("a panic became %v", err)
	}
	f.leave()
	f, _ = g.join("k", func(context.Context) (int, error) { return 1, nil })
	f.leave()
	if dropped != 1 || len(g.flights) != 0 {
		t.Errorf("dropped %d, %d flights left", dropped, len(g.flights))
	}
}
