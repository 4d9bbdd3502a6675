package storage

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A pull does not wait until hundreds of megabytes are on the disk, yet a power cut must not leave a layer whose
// record is durable and whose files are not. So the layers that are about to be added are first noted durably, as
// unflushed; after the commit the file system is flushed in the background, and the note removed. A store that is
// opened on a later boot and finds a note takes those layers, and what stands on them, for lost: the image is pulled
// again. (The alternative, a flush before the commit, makes every pull as slow as the disk.)

// unflushedNote is the content of a note.
type unflushedNote struct {
	Boot   string // the kernel's ID of the boot in which the layers were written
	Layers []string
}

func (s *Store) notesDir() string { return filepath.Join(s.cfg.Root, "unflushed") }

// markUnflushed notes the layers and returns what to call after they are in the store.
func (s *Store) markUnflushed(layers []string) (committed func(), err error) {
	if len(layers) == 0 {
		return func() {}, nil
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(unflushedNote{boot, layers})
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.notesDir(), 0o700); err != nil {
		return nil, err
	}
	// The name is the topmost layer's: one commit at a time adds it, but it may be removed and added again while
	// the first flush still runs, so a number makes it unique.
	f, err := os.CreateTemp(s.notesDir(), layers[len(layers)-1]+".*")
	if err != nil {
		return nil, fmt.Errorf("note unflushed layers: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close(), syncDir(s.notesDir())); err != nil {
		return nil, fmt.Errorf("note unflushed layers: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return func() {
		s.background.Go(func() {
			if err := s.flush(f.Name()); err != nil {
				s.log.Warn("layers are not flushed to disk yet", "err", err)
			}
		})
	}, nil
}

// flush writes everything to disk and removes the note.
func (s *Store) flush(note string) error {
	if err := syncFS(s.cfg.Root); err != nil {
		return err
	}
	return os.Remove(note)
}

// unflushed reads the notes and returns the layers that an earlier boot may have lost. Notes of this boot are of a
// daemon that was killed; their layers are in the page cache or on disk, and are flushed now.
func (s *Store) unflushed() (lost map[string]bool, notes []string, err error) {
	lost = map[string]bool{}
	boot, err := bootID()
	if err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(s.notesDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	for _, e := range entries {
		file := filepath.Join(s.notesDir(), e.Name())
		notes = append(notes, file)
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		var note unflushedNote
		if json.Unmarshal(data, &note) != nil {
			continue // cut off before its sync returned: its layers were not added yet
		}
		if note.Boot == boot {
			continue
		}
		for _, id := range note.Layers {
			lost[id] = true
		}
	}
	return lost, notes, nil
}

// bootIDFile changes with each boot; tests put another in its place.
var bootIDFile = "/proc/sys/kernel/random/boot_id"

func bootID() (string, error) {
	data, err := os.ReadFile(bootIDFile)
	if err != nil {
		return "", fmt.Errorf("boot ID: %w", err)
	}
	return strings.TrimSpace(string(bytes.TrimSpace(data))), nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncFS(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("flush %s: %w", dir, err)
	}
	return nil
}
