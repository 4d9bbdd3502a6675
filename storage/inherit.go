package storage

import (
	"errors"
	"fmt"
	"path/filepath"

	graphdriver "github.com/containers/storage/drivers"
	"golang.org/x/sys/unix"
)

// inheritImplied gives directories that a layer has only implied (it has /etc/a but no entry for /etc) the owner,
// mode and time that they have in the layers below. In an overlay the upper directory's count, so without this a
// layer with tmp/x alone would take the sticky bit from /tmp.
func (s *Store) inheritImplied(output *graphdriver.DriverWithDifferOutput, parent string, implied []string) error {
	if parent == "" || len(implied) == 0 {
		return nil
	}
	lowers, err := s.diffDirs(parent)
	if err != nil {
		return err
	}
	upper, err := openDir(unix.AT_FDCWD, output.Target)
	if err != nil {
		return fmt.Errorf("implied directories: %w", err)
	}
	defer unix.Close(upper)
	for _, dir := range implied {
		st, ok, err := findLower(lowers, dir)
		if err != nil {
			return fmt.Errorf("implied directory %q: %w", dir, err)
		}
		if !ok {
			continue
		}
		if err := setLike(upper, dir, st); err != nil {
			return fmt.Errorf("implied directory %q: %w", dir, err)
		}
	}
	return nil
}

// diffDirs are the directories of a layer and those below it, highest first.
func (s *Store) diffDirs(layer string) ([]string, error) {
	var dirs []string
	for layer != "" {
		dir, err := s.store.DifferTarget(layer)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", layer, err)
		}
		record, err := s.store.Layer(layer)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", layer, err)
		}
		dirs = append(dirs, dir)
		layer = record.Parent
	}
	return dirs, nil
}

// findLower looks a directory up from the highest layer down, until something has the name: a whiteout or a file
// ends the search too. A directory that is reached through a link is not found: the caller's stays as it is.
func findLower(lowers []string, dir string) (*unix.Stat_t, bool, error) {
	for _, lower := range lowers {
		fd, err := openDir(unix.AT_FDCWD, lower)
		if err != nil {
			return nil, false, err
		}
		found, err := openDir(fd, dir)
		unix.Close(fd)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return nil, false, nil
		case err != nil:
			return nil, false, err
		}
		var st unix.Stat_t
		err = unix.Fstat(found, &st)
		unix.Close(found)
		return &st, err == nil, err
	}
	return nil, false, nil
}

func setLike(root int, dir string, st *unix.Stat_t) error {
	fd, err := openDir(root, dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // a later entry of the layer replaced it
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	name := filepath.Join("/proc/self/fd", fmt.Sprint(fd))
	if err := unix.Chown(name, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(name, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{st.Mtim, st.Mtim}, 0)
}

// openDir opens a directory and follows no link below at; the path itself, from AT_FDCWD, is ours and trusted.
func openDir(at int, name string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC}
	if at != unix.AT_FDCWD {
		how.Resolve = unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH
	}
	return unix.Openat2(at, name, &how)
}
