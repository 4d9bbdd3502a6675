package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// errGone is why a registration ends whose socket is not there any more, or is another one.
var errGone = errors.New("the socket is gone")

// identity tells one socket from another at the same path: inodes are used again at once.
type identity struct {
	inode  uint64
	madeAt syscall.Timespec
}

// sockets are those in a directory and below it, and who serves each.
type sockets struct {
	dir     string
	watcher *fsnotify.Watcher
	serve   func(ctx context.Context, path string) // until ctx ends; its cause is errGone if the socket is gone
	known   map[string]served
}

type served struct {
	identity
	stop context.CancelCauseFunc
}

// followSockets registers the drivers whose sockets are in the directory, until ctx ends.
func (m *Manager) followSockets(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", m.registryDir(), err)
	}
	defer w.Close()
	s := &sockets{dir: m.registryDir(), watcher: w, known: map[string]served{}, serve: func(ctx context.Context, path string) {
		m.work.Go(func() { m.keepRegistered(ctx, path) })
	}}
	for {
		if err := s.scan(ctx); err != nil {
			m.log.Warn("drivers' sockets not read", "dir", s.dir, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
		case err := <-w.Errors: // some events were lost
			m.log.Warn("drivers' sockets", "dir", s.dir, "err", err)
		}
	}
}

// scan looks what is there, and begins to serve what is new.
func (s *sockets) scan(ctx context.Context) error {
	found, err := s.find()
	if err != nil {
		return err
	}
	for path, k := range s.known {
		if found[path] != k.identity {
			k.stop(errGone)
			delete(s.known, path)
		}
	}
	for path, id := range found {
		if _, ok := s.known[path]; !ok {
			ctx, stop := context.WithCancelCause(ctx)
			s.known[path] = served{id, stop}
			s.serve(ctx, path)
		}
	}
	return nil
}

// find returns the sockets. Directories are watched before they are read: what comes after that is told.
func (s *sockets) find() (map[string]identity, error) {
	if err := os.MkdirAll(s.dir, 0o750); err != nil {
		return nil, err
	}
	found := map[string]identity{}
	err := filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		hidden := path != s.dir && strings.HasPrefix(filepath.Base(path), ".")
		switch {
		case errors.Is(err, fs.ErrNotExist): // it went while we looked
			return nil
		case err != nil:
			return err
		case hidden && e.IsDir():
			return fs.SkipDir
		case hidden:
			return nil
		case e.IsDir():
			return s.watcher.Add(path)
		case e.Type()&fs.ModeSocket != 0:
			if info, err := e.Info(); err == nil {
				found[path] = identityOf(info)
			}
		}
		return nil
	})
	return found, err
}

func identityOf(info fs.FileInfo) identity {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{st.Ino, st.Mtim}
}

// How long a registration that failed waits before the next attempt.
const (
	firstAttempt = 100 * time.Millisecond
	lastAttempt  = 2 * time.Minute
)

// keepRegistered registers the driver behind a socket, and takes it off the list when the socket is gone.
func (m *Manager) keepRegistered(ctx context.Context, path string) {
	wait := firstAttempt
	for ctx.Err() == nil {
		d, err := m.register(ctx, path)
		if err == nil {
			m.keepLimit(ctx, d)
			if errors.Is(context.Cause(ctx), errGone) {
				m.deregister(context.WithoutCancel(ctx), d)
			}
			return
		}
		if ctx.Err() == nil {
			m.log.Warn("plugin not registered, it is tried again", "socket", path, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, lastAttempt)
	}
}
