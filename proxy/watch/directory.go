package watch

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// Directory follows a directory of Services, EndpointSlices, ServiceCIDRs and this Node, as YAML or JSON in files that are
// called *.yaml, *.yml or *.json. It is for machines without an API server, so what that would allocate must be there.
type Directory struct {
	Path string
	// Node is this node, as long as the directory has none of its name.
	Node Node
	// Pods are those that Services with a selector lead to, beside what EndpointSlices say. Nil is without.
	Pods *Pods
	Log  *slog.Logger
}

// Run follows until ctx ends. It is an error if the directory can't be read at the start.
func (d *Directory) Run(ctx context.Context, sink Sink) error {
	f := &files{path: d.Path, node: d.Node.Name, log: d.Log}
	changed, done := watchFiles(d.Path, d.Log)
	defer done()
	if _, err := f.read(); err != nil {
		return fmt.Errorf("directory of Services: %w", err)
	}
	t := d.teller(newOrdered(sink))
	t.tell(f)
	pods := d.Pods.follow(ctx, d.Log)
	anyway := time.NewTicker(readAnyway)
	defer anyway.Stop()
	quiet := newQuiet()
	defer quiet.timer.Stop()
	for {
		select {
		case <-ctx.Done():
			for range pods { // until whoever follows them has ended
			}
			return nil
		case t.pods = <-pods:
			t.tellSlices()
			continue
		case <-changed:
			quiet.disturb()
			continue
		case <-quiet.timer.C:
			quiet.since = time.Time{}
		case <-anyway.C:
		}
		switch anything, err := f.read(); {
		case err != nil:
			d.Log.Error("a directory can't be read; what was there stays in force", "path", d.Path, "err", err)
		case anything:
			t.tell(f)
		}
	}
}

// quiet fires when nothing has happened for a while, or too much.
type quiet struct {
	timer *time.Timer
	since time.Time // when the first thing happened
}

func newQuiet() *quiet {
	q := &quiet{timer: time.NewTimer(settle)}
	q.timer.Stop()
	return q
}

func (q *quiet) disturb() {
	if q.since.IsZero() {
		q.since = time.Now()
	}
	q.timer.Reset(min(settle, maxSettle-time.Since(q.since)))
}

// teller tells a sink how files and pods differ from before.
type teller struct {
	*Directory
	out      *ordered
	services *mirror[model.Service]
	slices   *mirror[model.Slice]
	cidrs    *mirror[serviceCIDR]
	node     *Node // as it was told last
	written  []any // the slices of files
	selects  []*selecting
	pods     members // nil while they are not known
}

func (d *Directory) teller(out *ordered) *teller {
	t := &teller{Directory: d, out: out}
	t.services = newMirror(mirror[model.Service]{
		tell:   func(d difference[model.Service]) { out.service(d.old, d.now) },
		synced: func() { out.synced(Services) },
	})
	t.slices = newMirror(mirror[model.Slice]{
		tell:   func(d difference[model.Slice]) { out.slice(d.old, d.now) },
		synced: func() { out.synced(Slices) },
	})
	t.cidrs = newMirror(mirror[serviceCIDR]{synced: func() { out.synced(ServiceCIDRs) }})
	t.cidrs.tell = func(difference[serviceCIDR]) { out.serviceCIDRs(union(t.cidrs.known)) }
	return t
}

func (t *teller) tell(f *files) {
	t.tellNode(f)
	// Values that are reduced already are never refused: Replace has no error to return.
	_ = t.cidrs.Replace(collect(t, f, func(s said) []*reduced[serviceCIDR] { return s.cidrs }), "")
	_ = t.services.Replace(collect(t, f, func(s said) []*reduced[model.Service] { return s.services }), "")
	t.written = collect(t, f, func(s said) []*reduced[model.Slice] { return s.slices })
	t.selects = nil
	for _, s := range f.last {
		t.selects = append(t.selects, s.selects...)
	}
	t.tellSlices()
}

// tellSlices waits for pods: without, every Service would seem to have none.
func (t *teller) tellSlices() {
	if t.Pods != nil && t.pods == nil {
		return
	}
	all := slices.Clone(t.written)
	for _, s := range t.selects {
		for _, slice := range s.slices(t.pods) {
			all = append(all, slice)
		}
	}
	_ = t.slices.Replace(all, "")
}

// tellNode tells of the node if it is not as it was.
func (t *teller) tellNode(f *files) {
	node := t.Node
	for _, name := range slices.Sorted(maps.Keys(f.last)) {
		if s := f.last[name]; s.node != nil {
			node = *s.node
		}
	}
	if t.node == nil || !t.node.Equal(node) {
		t.node = &node
		t.out.node(node)
	}
	t.out.synced(Nodes)
}

// collect takes what files have of a kind. Of an object that is in several, the first file's counts.
func collect[T any](t *teller, f *files, of func(said) []*reduced[T]) []any {
	var all []any
	seen := map[model.Name]string{}
	for _, file := range slices.Sorted(maps.Keys(f.last)) {
		for _, r := range of(f.last[file]) {
			if first, twice := seen[r.name]; twice {
				t.Log.Error("an object is in two files; remove one", "name", r.name, "used", first, "unused", file)
				continue
			}
			seen[r.name] = file
			all = append(all, r)
		}
	}
	return all
}
