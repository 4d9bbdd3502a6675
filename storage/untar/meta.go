package untar

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// meta sets owner, mode, attributes and time of what was made last at a place; it never follows a link.
func (u *unpacker) meta(at place, hdr *tar.Header) error {
	if err := unix.Fchownat(at.parent, at.base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if hdr.Typeflag != tar.TypeSymlink {
		// fchmodat follows links, but this is not one: we made it, and nobody else writes here.
		if err := unix.Fchmodat(at.parent, at.base, uint32(hdr.Mode&0o7777), 0); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	file := fdPath(at.parent) + "/" + at.base
	if err := setXattrs(hdr, func(key string, value []byte) error {
		return unix.Lsetxattr(file, key, value, 0)
	}); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeDir {
		return nil // its time would change with the next entry in it; see dirTimes
	}
	return setTimes(at.parent, at.base, hdr.ModTime)
}

// dirTimes sets the times of directories when nothing changes in them any more.
func (u *unpacker) dirTimes() error {
	for name, dir := range u.dirs {
		if !u.tree.stands(name, dir.at) {
			continue
		}
		parent, err := u.tree.open(path.Dir(name))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // it was named through a link that a later entry replaced
		}
		if err != nil {
			return err
		}
		err = setTimes(parent, path.Base(name), dir.mtime)
		unix.Close(parent)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("entry %q: %w", clip(name), err)
		}
	}
	return nil
}

func setTimes(parent int, base string, mtime time.Time) error {
	if mtime.IsZero() {
		mtime = time.Unix(0, 0)
	}
	ts, err := unix.TimeToTimespec(mtime)
	if err != nil {
		return fmt.Errorf("%w: time %v", ErrInvalid, mtime)
	}
	if err := unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// Attributes that a layer may bring. Everything else is the host's: trusted.overlay.* would let a layer redirect
// directories of the mount, security.selinux comes from the mount label.
var allowedXattrs = []string{"security.capability", "system.posix_acl_access", "system.posix_acl_default"}

func allowedXattr(key string) bool {
	if slices.Contains(allowedXattrs, key) {
		return true
	}
	return strings.HasPrefix(key, "user.") && !strings.HasPrefix(key, "user.overlay.")
}

func setXattrs(hdr *tar.Header, set func(key string, value []byte) error) error {
	const paxPrefix = "SCHILY.xattr."
	for record, value := range hdr.PAXRecords {
		key, ok := strings.CutPrefix(record, paxPrefix)
		if !ok || !allowedXattr(key) {
			continue
		}
		err := set(key, []byte(value))
		// user.* is for files and directories only (xattr(7)), and some file systems have none of these.
		if errors.Is(err, unix.ENOTSUP) || (errors.Is(err, unix.EPERM) && strings.HasPrefix(key, "user.")) {
			continue
		}
		if err != nil {
			return fmt.Errorf("set attribute %s: %w", key, err)
		}
	}
	return nil
}

// fdPath is a path to what a descriptor refers to, for calls that take no descriptor opened with O_PATH.
func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
