package watch

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/orlop/orlop/proxy/model"
)

// How files are followed.
const (
	settle     = 100 * time.Millisecond // a directory must be quiet for so long: files are often written in several steps
	maxSettle  = time.Second            // but no longer than this
	readAnyway = time.Minute            // in case a change was not seen, as in a directory that was mounted over
	maxFile    = 64 << 20               // bytes; ten thousand Services with slices are 10 MB
)

// files knows what the files of a directory say.
type files struct {
	path string
	node string // this node's name
	log  *slog.Logger
	last map[string]said // by file
}

// said is what a file had when it was last understood, reduced to what is needed of it.
type said struct {
	sum      [sha256.Size]byte
	services []*reduced[model.Service]
	slices   []*reduced[model.Slice]
	node     *Node // this one
	cidrs    []*reduced[serviceCIDR]
	selects  []*selecting
}

// read reads the files that changed. What can't be understood is logged, and what that file had before stays in force: a
// slip in an editor ends nobody's service.
func (f *files) read() (changed bool, err error) {
	names, err := f.names()
	if err != nil {
		return false, err
	}
	now := map[string]said{}
	changed = f.last == nil || len(names) != len(f.last)
	for _, name := range names {
		s, err := f.file(name)
		if err != nil {
			f.log.Error("a file is not used; what it had before stays in force", "file", name, "err", err)
		}
		changed = changed || s.sum != f.last[name].sum
		now[name] = s
	}
	f.last = now
	return changed, nil
}

// names are the files that may have objects, in order, but not what editors and package managers put beside them.
func (f *files) names() ([]string, error) {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), "~") || e.IsDir() {
			continue
		}
		switch filepath.Ext(e.Name()) {
		case ".yaml", ".yml", ".json":
			names = append(names, filepath.Join(f.path, e.Name()))
		}
	}
	return names, nil
}

// file reads one file, or returns what it last had. Its sum is kept also of what was not understood, so that each mistake
// is told once.
func (f *files) file(name string) (said, error) {
	old := f.last[name]
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return said{}, nil // it went meanwhile
	}
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxFile) {
		err = fmt.Errorf("not a file of at most %d bytes", maxFile)
	}
	if err != nil {
		return old, err
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return old, err
	}
	sum := sha256.Sum256(data)
	if sum == old.sum {
		return old, nil
	}
	old.sum = sum
	m, err := decode(data)
	if err != nil {
		return old, err
	}
	for _, unknown := range m.unknown {
		f.log.Warn("a file has what is not known here; it is left out", "file", name, "err", unknown)
	}
	now := f.reduce(m)
	now.sum = sum
	return now, nil
}

// reduce keeps what is needed of objects; they have been checked.
func (f *files) reduce(m *manifest) said {
	var out said
	for _, in := range m.services {
		service, _ := model.ParseService(in)
		if service == nil || !ours(in) {
			continue
		}
		out.services = append(out.services, &reduced[model.Service]{name: service.Name, value: service})
		if len(in.Spec.Selector) > 0 {
			out.selects = append(out.selects, selects(in, service))
		}
	}
	for _, in := range m.slices {
		if slice, _ := model.ParseSlice(in); slice != nil && served(in) {
			out.slices = append(out.slices, &reduced[model.Slice]{name: slice.Name, value: slice})
		}
	}
	for _, in := range m.nodes {
		if node, _ := ParseNode(in); in.Name == f.node {
			out.node = &node
		}
	}
	for _, in := range m.cidrs {
		cidr, _ := parseServiceCIDR(in)
		out.cidrs = append(out.cidrs, &reduced[serviceCIDR]{name: model.Name{Name: in.Name}, value: cidr})
	}
	return out
}

// watchFiles tells of changes in a directory. Where it can't be watched, time has to do: see readAnyway. done ends it.
func watchFiles(path string, log *slog.Logger) (changes <-chan struct{}, done func()) {
	out := make(chan struct{}, 1)
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(path); err != nil {
			_ = w.Close()
		}
	}
	if err != nil {
		log.Warn("a directory can't be watched; it is read from time to time", "path", path, "every", readAnyway, "err", err)
		return out, func() {}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case _, open := <-w.Events:
				if !open {
					return
				}
			case _, open := <-w.Errors: // as when there were too many events to tell them all
				if !open {
					return
				}
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, func() { _ = w.Close(); <-ended }
}
