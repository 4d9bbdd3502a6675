package untar

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// tree opens directories below a root as a chroot would see them.
type tree struct {
	root int
	// The last directory that was opened; entries of one directory follow each other in an archive.
	lastPath string
	lastFD   int
	// implied are the directories that had to be made, parents first, with those that have been removed since.
	implied []impliedDir
	// removed are the names that something was removed from, each with the number of its last removal. What was noted
	// of a name before that is void, and is found so at the end: to look for it at each removal would cost a hostile
	// layer nothing and us the square of its entries.
	removed  map[string]int
	removals int
}

type impliedDir struct {
	name string
	at   int // of removals
}

func newTree(root int) *tree { return &tree{root: root, lastFD: -1, removed: map[string]int{}} }

// stands tells whether what was noted of a name after so many removals still holds.
func (t *tree) stands(name string, at int) bool {
	if at == t.removals {
		return true
	}
	for ; name != "."; name = path.Dir(name) {
		if t.removed[name] > at {
			return false
		}
	}
	return true
}

func (t *tree) close() { t.forget() }

// forget drops the remembered directory: it must be called when something was removed, because the name may then mean
// something else.
func (t *tree) forget() {
	if t.lastFD >= 0 {
		unix.Close(t.lastFD)
	}
	t.lastFD, t.lastPath = -1, ""
}

// dir returns an O_PATH descriptor of a directory, which stays owned by the tree and is valid until the next call.
// Missing directories are made.
func (t *tree) dir(name string) (int, error) {
	if name == "." {
		return t.root, nil
	}
	if t.lastFD >= 0 && t.lastPath == name {
		return t.lastFD, nil
	}
	fd, err := t.open(name)
	if errors.Is(err, unix.ENOENT) {
		if err = t.makeAll(name); err == nil {
			fd, err = t.open(name)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("open directory %q: %w", clip(name), err)
	}
	t.forget()
	t.lastFD, t.lastPath = fd, name
	return fd, nil
}

func (t *tree) open(name string) (int, error) {
	return openInRoot(t.root, name, unix.O_PATH|unix.O_DIRECTORY)
}

// openInRoot opens a path with the kernel keeping it below root: links, also absolute ones, resolve inside.
func openInRoot(root int, name string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(root, name, &how)
		// EAGAIN: a rename elsewhere raced with a ".."; the kernel asks for another try.
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return fd, err
	}
}

// makeAll makes the missing directories of a path, one by one, each below an opened parent.
func (t *tree) makeAll(name string) error {
	parts := strings.Split(name, "/")
	for i := range parts {
		dir := strings.Join(parts[:i+1], "/")
		fd, err := t.open(dir)
		if err == nil {
			unix.Close(fd)
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
		parent, err := t.open(path.Dir(dir))
		if err != nil {
			return err
		}
		err = unix.Mkdirat(parent, parts[i], 0o755)
		unix.Close(parent)
		if err != nil {
			return err // EEXIST: a link that leads nowhere stands in the way
		}
		t.implied = append(t.implied, impliedDir{dir, t.removals})
	}
	return nil
}

// remove deletes an entry and all that is below it, following no link. The directory that dir returned last is closed.
func (t *tree) remove(at place) error {
	err := unix.Unlinkat(at.parent, at.base, 0)
	if errors.Is(err, unix.EISDIR) {
		err = removeAll(at)
	}
	if err != nil {
		return err
	}
	t.forget()
	t.removals++
	t.removed[at.name] = t.removals
	return nil
}

func removeAll(at place) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", at.parent))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(at.base)
}
