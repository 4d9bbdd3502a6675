package untar

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// whiteout turns a marker of the archive into what overlayfs understands: a character device 0:0 hides one name of
// the layers below, an attribute on a directory hides all (Documentation/filesystems/overlayfs.rst). A marker speaks
// of the layers below only: what this layer itself has under the name stays.
func (u *unpacker) whiteout(at place) error {
	if at.base == opaqueMarker {
		return u.setOpaque(path.Dir(at.name))
	}
	if strings.HasPrefix(at.base, auxPrefix) {
		return nil
	}
	hidden := strings.TrimPrefix(at.base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("%w: a whiteout of nothing", ErrInvalid)
	}
	err := unix.Mknodat(at.parent, hidden, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at.parent, hidden, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return u.setOpaque(path.Join(path.Dir(at.name), hidden))
	}
	return nil
}

func (u *unpacker) setOpaque(dir string) error {
	fd, err := u.tree.dir(dir)
	if err != nil {
		return err
	}
	if err := unix.Setxattr(fdPath(fd), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark opaque: %w", err)
	}
	return nil
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }
