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
	// implied are the directories that had to be made, parents first.
	implied []string
}

func newTree(root int) *tree { return &tree{root: root, lastFD: -1} }

func (t *tree) close() { t.forget() }

// forget drops the remembered directory: it must be called before anything is removed or replaced, because the
// name may then mean something else.
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
		t.implied = append(t.implied, dir)
	}
	return nil
}

// remove deletes an entry and all that is below it, following no link.
func (t *tree) remove(parent int, base string) error {
	err := unix.Unlinkat(parent, base, 0)
	if err == nil || !errors.Is(err, unix.EISDIR) {
		return err
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", parent))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(base)
}
