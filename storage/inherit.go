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
	lowers := &lowerDirs{store: s.store, next: parent}
	upper, err := openDir(unix.AT_FDCWD, output.Target)
	if err != nil {
		return fmt.Errorf("implied directories: %w", err)
	}
	defer unix.Close(upper)
	for _, dir := range implied {
		st, ok, err := lowers.find(dir)
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

// lowerDirs are the directories of a layer and of those below it, highest first. They are looked up one by one when
// they are needed, and most often the highest is enough.
type lowerDirs struct {
	store *library
	next  string // ID of the highest layer that is not in dirs
	dirs  []string
}

// at returns the i-th directory; i is at most one more than in the call before. "" below the lowest.
func (l *lowerDirs) at(i int) (string, error) {
	if i < len(l.dirs) {
		return l.dirs[i], nil
	}
	if l.next == "" {
		return "", nil
	}
	dir, err := l.store.DifferTarget(l.next)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", l.next, err)
	}
	record, err := l.store.Layer(l.next)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", l.next, err)
	}
	l.dirs = append(l.dirs, dir)
	l.next = record.Parent
	return dir, nil
}

// find looks a directory up from the highest layer down, until something has the name: a whiteout or a file ends the
// search too. A directory that is reached through a link is not found: the caller's stays as it is.
func (l *lowerDirs) find(dir string) (st *unix.Stat_t, ok bool, err error) {
	for i := 0; ; i++ {
		lower, err := l.at(i)
		if err != nil || lower == "" {
			return nil, false, err
		}
		st, err := statDir(lower, dir)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return nil, false, nil
		}
		return st, err == nil, err
	}
}

func statDir(root, dir string) (*unix.Stat_t, error) {
	top, err := openDir(unix.AT_FDCWD, root)
	if err != nil {
		return nil, err
	}
	defer unix.Close(top)
	fd, err := openDir(top, dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return &st, unix.Fstat(fd, &st)
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
