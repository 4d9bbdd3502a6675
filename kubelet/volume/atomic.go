package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Names of the writer's own in a volume. All others are links to what is below dataLink, so that one rename changes all
// files at once:
//
//	..data      → ..1234567
//	..1234567/  the files
//	name        → ..data/name
const (
	dataLink  = "..data"
	dataStage = "..data_tmp"
)

// writeAtomic makes files the content of a volume, in one step for those who read it. Nothing is written if nothing differs.
func writeAtomic(dir string, files map[string]file, who owner) error {
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if old != "" && holds(filepath.Join(dir, old), files) {
		return nil
	}
	fresh, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return err
	}
	if err := fill(fresh, files, who); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	stage := filepath.Join(dir, dataStage)
	if err := os.Remove(stage); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(fresh), stage); err != nil {
		return err
	}
	if err := os.Rename(stage, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	if err := link(dir, files); err != nil {
		return err
	}
	if old != "" {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}

// errDiffers ends a walk over what is on disk.
var errDiffers = errors.New("differs")

// holds compares what is on disk with what should be.
func holds(dir string, files map[string]file) bool {
	count := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, ok := files[name]
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !ok || !bytes.Equal(data, f.data) {
			return errDiffers
		}
		count++
		return nil
	})
	return err == nil && count == len(files)
}

func fill(dir string, files map[string]file, who owner) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f := files[name]
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return err
		}
		mode := fs.FileMode(f.mode)
		if who.gid != noID {
			mode |= groupRead
		}
		if err := os.Chown(path, ownUser(f, who), who.gid); err != nil {
			return fmt.Errorf("owner of %s: %w", name, err)
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o755)
}

// ownUser: only what its mode keeps from others needs an owner: a token.
func ownUser(f file, who owner) int {
	if f.mode == 0o600 {
		return who.uid
	}
	return noID
}

// link makes the names that people see, and removes those that are gone.
func link(dir string, files map[string]file) error {
	want := map[string]bool{}
	for name := range files {
		first, _, _ := strings.Cut(name, string(filepath.Separator))
		want[first] = true
	}
	for name := range want {
		err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !want[e.Name()] && !strings.HasPrefix(e.Name(), "..") {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
