// Package storage holds image layers and the writable root filesystems of containers, in containers/storage with
// the overlay driver. Nothing outside storage and image imports containers/storage.
//
// A layer is unpacked into a staging directory of its own, many side by side, and joins the store by a rename when
// its whole image is there (see [Store.StageLayer] and [Store.CommitImage]). No lock is held while anything is read
// from a network or unpacked.
//
// Lock order: Store.commitMu, Store.mountsMu, then the locks of containers/storage; usage has leaf locks.
package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	cs "github.com/containers/storage"
	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/reexec"
	"golang.org/x/sys/unix"
)

// What callers branch on.
var (
	ErrNotFound     = errors.New("not in the store")
	ErrLocked       = errors.New("store is used by another process")
	ErrInvalidLayer = errors.New("invalid layer")                    // hostile, broken, or not what its digest says
	ErrLimit        = errors.New("layer exceeds a limit")            // MaxBytes or the disk's free space
	ErrLayerGone    = errors.New("layer was removed from the store") // stage it and commit again
	ErrInUse        = errors.New("image is used by a root filesystem")
)

// Config says where layers live.
type Config struct {
	// Root is the directory of layers, images and their metadata. It must be on a file system that overlayfs
	// takes as an upper directory.
	Root string
	// RunRoot is the directory of mounts and locks; it is emptied by a reboot, and should be on a tmpfs: it is
	// written with each mount.
	RunRoot string
	// DriverOptions are passed to the overlay driver as they are, for example "overlay.mountopt=nodev".
	DriverOptions []string
	// Log gets what was repaired; nil for none.
	Log *slog.Logger
}

// Store is safe for concurrent use.
type Store struct {
	cfg    Config
	log    *slog.Logger
	store  *library
	driver graphdriver.Driver
	lock   *os.File // flock, held as long as the store is open
	usage  *usageCache

	commitMu sync.Mutex // one change of the set of images and layers at a time

	mountsMu sync.Mutex
	holders  map[string]imageMount // who holds which image mounted, by holder; a copy of the files in RunRoot

	layersMu sync.RWMutex
	layers   map[string]Usage // the read-only layers that are in the store, by layer ID

	background sync.WaitGroup // flushes to disk; see sync.go
}

// Init must be called first in main of every program that opens a store: containers/storage re-executes the program
// to mount more layers than fit into one page of options, and to change owners. If it returns true this was such a
// call, it is done, and main must return.
func Init() bool { return reexec.Init() }

// Open opens or makes the store, and removes what an interrupted pull or a power cut left in it. One process at a
// time may have it open: ErrLocked otherwise.
func Open(cfg Config) (_ *Store, err error) {
	if !filepath.IsAbs(cfg.Root) || !filepath.IsAbs(cfg.RunRoot) {
		return nil, fmt.Errorf("storage: root %q and run root %q must be absolute paths", cfg.Root, cfg.RunRoot)
	}
	s := &Store{cfg: cfg, log: cfg.Log, usage: newUsageCache(), layers: map[string]Usage{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	takeLibraryLog(s.log)
	if s.lock, err = lockRoot(cfg.Root); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	if err := errors.Join(s.clear(s.stagingDir()), s.clear(s.TempDir()), s.clear(s.deletedDir())); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.TempDir(), 0o700); err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	opened, err := cs.GetStore(cs.StoreOptions{
		GraphRoot:          cfg.Root,
		RunRoot:            cfg.RunRoot,
		GraphDriverName:    "overlay",
		GraphDriverOptions: cfg.DriverOptions,
	})
	if err != nil {
		return nil, fmt.Errorf("storage %s: %w", cfg.Root, err)
	}
	s.store = &library{Store: opened}
	if s.driver, err = s.store.GraphDriver(); err != nil {
		return nil, fmt.Errorf("storage %s: driver: %w", cfg.Root, err)
	}
	// The root of a user namespace must get through to its root filesystem, whose own directory belongs to it.
	if err := os.Chmod(filepath.Join(cfg.Root, "overlay"), 0o711); err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	if err := s.repair(); err != nil {
		return nil, fmt.Errorf("storage %s: repair: %w", cfg.Root, err)
	}
	if err := s.loadHolders(); err != nil {
		return nil, fmt.Errorf("storage %s: image mounts: %w", cfg.Root, err)
	}
	return s, nil
}

// lockRoot makes the root and takes its lock.
func lockRoot(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	name := filepath.Join(root, "orlop.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("storage %s: %w: stop that process or give this one another root", root, ErrLocked)
		}
		return nil, fmt.Errorf("storage: lock %s: %w", name, err)
	}
	return f, nil
}

// Close waits until what was pulled is on disk, and releases what Open took. It unmounts no root filesystem and no
// image: containers go on. If none is mounted, the private mount of the layer directory goes away too.
func (s *Store) Close() error {
	s.background.Wait()
	s.usage.close()
	var err error
	if _, shutErr := s.store.Shutdown(false); shutErr != nil && !errors.Is(shutErr, cs.ErrLayerUsedByContainer) {
		err = fmt.Errorf("storage %s: %w", s.cfg.Root, shutErr)
	}
	s.store.Free()
	return errors.Join(err, s.lock.Close())
}

// stagingDir is where the overlay driver makes staging directories.
func (s *Store) stagingDir() string { return filepath.Join(s.cfg.Root, "overlay", "staging") }

// TempDir is a directory for files that nobody needs after a restart. Open empties it.
func (s *Store) TempDir() string { return filepath.Join(s.cfg.Root, "tmp") }

// deletedDir is where the driver moves layers before it removes them.
func (s *Store) deletedDir() string { return filepath.Join(s.cfg.Root, "overlay", "tempdirs") }

// clear removes what interrupted work left in a directory. Nobody else has the store open.
func (s *Store) clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	for _, e := range entries {
		if err := s.removeLeft(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("storage: %w", err)
		}
		s.log.Info("removed what was interrupted", "dir", dir, "name", e.Name())
	}
	return nil
}

const (
	leftTries = 50
	leftPause = 20 * time.Millisecond
)

// removeLeft tries for a second: the kernel may not be done yet with what a process did that was killed a moment ago.
func (s *Store) removeLeft(path string) error {
	var err error
	for range leftTries {
		if err = errors.Join(unmountLeft(path), os.RemoveAll(path)); err == nil {
			return nil
		}
		s.log.Warn("not removed yet", "path", path, "err", err, "holds", holds(err))
		<-time.After(leftPause)
	}
	return err
}

// unmountLeft unmounts the root filesystems whose removal was interrupted: the driver moves a layer's directory away
// together with what is mounted in it.
func unmountLeft(path string) error {
	mounts, err := filepath.Glob(filepath.Join(path, "*", "merged"))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // nothing is mounted there
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return nil
}

// holds names what is in the directory that could not be removed.
func holds(err error) (names []string) {
	var at *fs.PathError
	if !errors.As(err, &at) {
		return nil
	}
	entries, _ := os.ReadDir(at.Path)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
