package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

// settle is how long a directory must be quiet before it is read: a file is often written in several steps.
const settle = 100 * time.Millisecond

// Files follows a manifest, or a directory of manifests, until ctx ends. What can't be read is logged, and the pods that
// came from that file before stay: a slip in an editor ends nobody's service. It is read anew when it changes and, as
// kubelet does, after every period.
func Files(ctx context.Context, path string, as Static, period time.Duration, sink Sink) {
	f := &files{path: path, as: as, list: newList(pod.FileSource, sink), last: map[string]kept{}, log: as.Log}
	changes, closeWatch := Watch(path, as.Log)
	defer closeWatch()
	for {
		f.read()
		timer := time.NewTimer(period)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-changes:
			quiet(ctx, changes)
		}
		timer.Stop()
	}
}

// quiet waits until no change has come for a while.
func quiet(ctx context.Context, changes <-chan struct{}) {
	for {
		timer := time.NewTimer(settle)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-changes:
			timer.Stop()
		case <-timer.C:
			return
		}
	}
}

// Watch tells of changes of a manifest or a directory of them. Where it can't, its user has to look from time to time.
func Watch(path string, log *slog.Logger) (changes <-chan struct{}, closeWatch func()) {
	out := make(chan struct{}, 1)
	w, err := fsnotify.NewWatcher()
	if err == nil {
		dir := path
		if info, statErr := os.Stat(path); statErr == nil && !info.IsDir() {
			dir = filepath.Dir(path) // an editor replaces the file
		}
		if err = w.Add(dir); err != nil {
			_ = w.Close()
		}
	}
	if err != nil {
		log.Warn("manifests can't be watched; they are read from time to time", "path", path, "err", err)
		return out, func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range w.Events {
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out, func() { _ = w.Close(); <-done }
}

type files struct {
	path string
	as   Static
	list *list
	last map[string]kept // by file
	log  *slog.Logger
}

// kept is what a file had when it was last understood.
type kept struct {
	content string
	pods    []*v1.Pod
}

func (f *files) read() {
	names, err := Manifests(f.path)
	if err != nil {
		f.log.Warn("manifests not read", "path", f.path, "err", err)
		if f.list.ready {
			return // what ran goes on
		}
	}
	now := map[string]kept{}
	var all []*v1.Pod
	for _, name := range names {
		k, err := f.file(name)
		if err != nil {
			f.log.Warn("manifest not used", "file", name, "err", err)
		}
		now[name] = k
		all = append(all, k.pods...)
	}
	f.last = now
	f.list.set(all)
}

// Manifests are the files of a directory, or the one file that path names, but not what editors and package managers put
// beside them. A path that is not there, or empty, has none.
func Manifests(path string) ([]string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), "~") || e.IsDir() {
			continue
		}
		switch filepath.Ext(e.Name()) {
		case ".yaml", ".yml", ".json", ".manifest", "":
			names = append(names, filepath.Join(path, e.Name()))
		}
	}
	return names, nil
}

// maxManifest limits a file: a manifest larger than what an API server takes is a mistake.
const maxManifest = 10 << 20

// ReadManifest reads a file of a reasonable size.
func ReadManifest(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxManifest) {
		err = fmt.Errorf("not a file of at most %d bytes", maxManifest)
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(name)
}

// file reads one manifest, or returns what it last had.
func (f *files) file(name string) (kept, error) {
	old := f.last[name]
	data, err := ReadManifest(name)
	if err != nil {
		return old, err
	}
	if string(data) == old.content && old.content != "" {
		return old, nil
	}
	pods, err := f.as.Decode(data, name)
	if err != nil {
		return old, err
	}
	return kept{string(data), pods}, nil
}
