package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Usage is disk space in use.
type Usage struct {
	Bytes  uint64
	Inodes uint64
}

func (u Usage) plus(v Usage) Usage { return Usage{u.Bytes + v.Bytes, u.Inodes + v.Inodes} }

const (
	// walkPatience is how long a caller waits for a count before it takes the last one.
	walkPatience = 50 * time.Millisecond
	// walkShare is how many times longer than it took a count is good for: counting uses 1/walkShare of a CPU.
	walkShare = 50
	// minCountAge keeps a burst of calls from counting again and again.
	minCountAge = 500 * time.Millisecond
)

// RootfsUsage is the space that a container wrote. It never takes much longer than 50 ms: the answer for a large
// tree is the last count that was finished, and a new one goes on in the background if that is old. The first answer
// for a tree that takes longer is what was counted until then. ErrNotFound if there is no such container.
func (s *Store) RootfsUsage(ctx context.Context, id string) (Usage, error) {
	upper, err := s.RootfsUpperDir(id)
	if err != nil {
		return Usage{}, err
	}
	if upper == "" {
		return Usage{}, nil
	}
	u, err := s.usage.get(ctx, id, upper)
	if err != nil {
		return Usage{}, fmt.Errorf("root filesystem %s: usage: %w", id, err)
	}
	return u, nil
}

// FilesystemUsage is the space that all layers and images take, and the directory they are in. Layers do not change,
// so their sizes are kept from when they were unpacked; for the containers it is RootfsUsage's.
func (s *Store) FilesystemUsage(ctx context.Context) (path string, u Usage, err error) {
	s.layersMu.RLock()
	for _, layer := range s.layers {
		u = u.plus(layer)
	}
	s.layersMu.RUnlock()
	ids, err := s.ListRootfs()
	if err != nil {
		return "", Usage{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, walkPatience) // for all of them together
	defer cancel()
	for _, id := range ids {
		written, err := s.RootfsUsage(ctx, id)
		if err == nil { // one that was deleted meanwhile uses nothing
			u = u.plus(written)
		}
	}
	return s.cfg.Root, u, nil
}

// usageCache counts directory trees, each at most once at a time.
type usageCache struct {
	stop    chan struct{} // closed to end all counting
	running sync.WaitGroup

	mu      sync.Mutex
	entries map[string]*count
}

// count is what is known of one tree. The cache's mu guards it.
type count struct {
	usage   Usage
	counted bool          // usage is of a whole tree
	good    time.Time     // until when usage needs no new count
	done    chan struct{} // closed when the count that is under way ends; nil if none is
	err     error
}

func newUsageCache() *usageCache {
	return &usageCache{stop: make(chan struct{}), entries: map[string]*count{}}
}

func (c *usageCache) close() {
	close(c.stop)
	c.running.Wait()
}

func (c *usageCache) forget(id string) {
	c.mu.Lock()
	delete(c.entries, id)
	c.mu.Unlock()
}

func (c *usageCache) get(ctx context.Context, id, dir string) (Usage, error) {
	c.mu.Lock()
	e := c.entries[id]
	if e == nil {
		e = &count{}
		c.entries[id] = e
	}
	if time.Now().Before(e.good) {
		defer c.mu.Unlock()
		return e.usage, nil
	}
	if e.done == nil {
		e.done = make(chan struct{})
		c.running.Go(func() { c.count(e, dir) })
	}
	done := e.done
	c.mu.Unlock()

	patience := time.NewTimer(walkPatience)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return e.usage, e.err
}

func (c *usageCache) count(e *count, dir string) {
	start := time.Now()
	usage, err := walk(dir, func(sofar Usage) bool {
		c.mu.Lock()
		if !e.counted {
			e.usage = sofar
		}
		c.mu.Unlock()
		select {
		case <-c.stop:
			return false
		default:
			return true
		}
	})
	took := time.Since(start)
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.err = err; err == nil {
		e.usage, e.counted = usage, true
	}
	e.good = time.Now().Add(max(minCountAge, took*walkShare))
	close(e.done)
	e.done = nil
}

var errStopped = errors.New("counting was stopped")

// walk sums the blocks of a tree, hard links once. It reports now and then, and stops if that returns false. Files
// that vanish while it looks count as nothing.
func walk(dir string, report func(Usage) bool) (Usage, error) {
	const reportEvery = 256
	var sum Usage
	seen := map[uint64]bool{} // inodes with several links
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return ignoreVanished(err)
		}
		info, err := entry.Info()
		if err != nil {
			return ignoreVanished(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Nlink > 1 && !entry.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		sum.Bytes += uint64(st.Blocks) * 512 // stat(2): always in units of 512
		sum.Inodes++
		if sum.Inodes%reportEvery == 0 && !report(sum) {
			return errStopped
		}
		return nil
	})
	return sum, err
}

func ignoreVanished(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
