package untar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Names that the OCI image specification (layer.md, "Whiteouts") gives a meaning.
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	auxPrefix      = ".wh..wh." // other names of aufs' own; they describe nothing
)

// place is where an entry goes: its cleaned path, the descriptor of its parent, and its name there.
type place struct {
	name   string
	parent int
	base   string
}

// entry makes one entry of the archive.
func (u *unpacker) entry(ctx context.Context, hdr *tar.Header, content io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if err := u.charge(hdr); err != nil {
		return err
	}
	if name == "." {
		return u.rootEntry(hdr)
	}
	parent, err := u.tree.dir(path.Dir(name))
	if err != nil {
		return err
	}
	at := place{name, parent, path.Base(name)}
	if strings.HasPrefix(at.base, whiteoutPrefix) {
		return u.whiteout(at)
	}
	if err := u.owners(hdr); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return u.file(ctx, at, hdr, content)
	case tar.TypeDir:
		return u.directory(at, hdr)
	case tar.TypeLink:
		return u.hardLink(at, hdr)
	case tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.special(at, hdr)
	}
	return fmt.Errorf("%w: unknown entry type %q", ErrInvalid, hdr.Typeflag)
}

// cleanName makes a relative path of an entry's name. Archives may have absolute names, which mean the layer's root;
// a name that climbs out of it is refused, though the kernel would keep it in, because no honest tool writes it.
func cleanName(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("%w: the name leaves the layer", ErrInvalid)
	}
	if strings.ContainsRune(clean, 0) {
		return "", fmt.Errorf("%w: the name has a NUL byte", ErrInvalid)
	}
	return clean, nil
}

// owners notes who owns the entry, and refuses IDs that no file can have.
func (u *unpacker) owners(hdr *tar.Header) error {
	const noID = 1<<32 - 1 // (uid_t)-1 means "leave as it is" to chown
	if hdr.Uid < 0 || hdr.Uid >= noID || hdr.Gid < 0 || hdr.Gid >= noID {
		return fmt.Errorf("%w: owner %d:%d is out of range", ErrInvalid, hdr.Uid, hdr.Gid)
	}
	u.uids[uint32(hdr.Uid)] = true
	u.gids[uint32(hdr.Gid)] = true
	return nil
}

// rootEntry sets the owner and mode of the layer's root, if the archive describes it.
func (u *unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: the root is not a directory", ErrInvalid)
	}
	if err := u.owners(hdr); err != nil {
		return err
	}
	u.dirs["."] = described{hdr.ModTime, u.tree.removals}
	return u.meta(place{".", u.root, "."}, hdr)
}

func (u *unpacker) file(ctx context.Context, at place, hdr *tar.Header, content io.Reader) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at.parent, at.base, flags, 0o600)
	if errors.Is(err, unix.EEXIST) {
		if at, err = u.replace(at); err != nil {
			return err
		}
		fd, err = unix.Openat(at.parent, at.base, flags, 0o600)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	u.inodes++
	if err := u.write(ctx, fd, hdr, content); err != nil {
		return err
	}
	// chown takes the set-user-ID bits and the capabilities away, so it comes first.
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode&0o7777)); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	if err := setXattrs(hdr, func(key string, value []byte) error {
		return unix.Fsetxattr(fd, key, value, 0)
	}); err != nil {
		return err
	}
	return setTimes(at.parent, at.base, hdr.ModTime)
}

// write copies the content. In a sparse file blocks of zeros stay holes: it may claim far more than it holds.
func (u *unpacker) write(ctx context.Context, fd int, hdr *tar.Header, content io.Reader) error {
	sparse := isSparse(hdr)
	var written int64
	for {
		n, err := io.ReadFull(content, u.buf)
		chunk := u.buf[:n]
		if sparse && allZero(chunk) {
			if _, err := unix.Seek(fd, int64(n), unix.SEEK_CUR); err != nil {
				return fmt.Errorf("seek: %w", err)
			}
		} else if err := writeAll(fd, chunk); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		written += int64(n)
		switch {
		case err == io.EOF || (err == io.ErrUnexpectedEOF && written == hdr.Size):
			if sparse {
				return unix.Ftruncate(fd, written) // the last block may be a hole
			}
			return nil
		case err == io.ErrUnexpectedEOF:
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		case err != nil:
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil && err != unix.EINTR {
			return err
		}
		p = p[max(n, 0):]
	}
	return nil
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func allZero(p []byte) bool { return !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) }

// directory makes a directory, or takes one that is there: a later entry describes it again.
func (u *unpacker) directory(at place, hdr *tar.Header) error {
	err := unix.Mkdirat(at.parent, at.base, 0o700)
	switch {
	case errors.Is(err, unix.EEXIST):
		if at, err = u.directoryAgain(at); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		u.inodes++
	}
	u.dirs[at.name] = described{hdr.ModTime, u.tree.removals}
	return u.meta(at, hdr)
}

// directoryAgain makes a directory where something is already.
func (u *unpacker) directoryAgain(at place) (place, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(at.parent, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return at, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return at, nil
	}
	at, err := u.replace(at)
	if err != nil {
		return at, err
	}
	if err := unix.Mkdirat(at.parent, at.base, 0o700); err != nil {
		return at, err
	}
	if isWhiteout(&st) { // removed and made anew in one layer: nothing of what was below may show through
		return at, u.setOpaque(at.name)
	}
	return at, nil
}

// hardLink links to another entry of this layer; the link's target is found as in a chroot and is not followed.
func (u *unpacker) hardLink(at place, hdr *tar.Header) error {
	target, err := cleanName(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("link to %q: %w", clip(hdr.Linkname), err)
	}
	if target == "." || strings.HasPrefix(path.Base(target), whiteoutPrefix) {
		return fmt.Errorf("link to %q: %w: not a file", clip(hdr.Linkname), ErrInvalid)
	}
	dir, err := u.tree.open(path.Dir(target))
	if err != nil {
		return fmt.Errorf("link to %q: %w", clip(hdr.Linkname), err)
	}
	defer unix.Close(dir)
	if target == at.name {
		return nil // a link to itself changes nothing, and replacing would delete it
	}
	err = unix.Linkat(dir, path.Base(target), at.parent, at.base, 0)
	if errors.Is(err, unix.EEXIST) {
		if at, err = u.replace(at); err != nil {
			return err
		}
		err = unix.Linkat(dir, path.Base(target), at.parent, at.base, 0)
	}
	if errors.Is(err, unix.EPERM) { // the kernel's answer for a directory
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil {
		return fmt.Errorf("link to %q: %w", clip(hdr.Linkname), err)
	}
	return nil
}

// special makes links and nodes.
func (u *unpacker) special(at place, hdr *tar.Header) error {
	err := makeSpecial(at, hdr)
	if errors.Is(err, unix.EEXIST) {
		if at, err = u.replace(at); err != nil {
			return err
		}
		err = makeSpecial(at, hdr)
	}
	if err != nil {
		return err
	}
	u.inodes++
	return u.meta(at, hdr)
}

func makeSpecial(at place, hdr *tar.Header) error {
	dev := unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	switch hdr.Typeflag {
	case tar.TypeSymlink:
		return unix.Symlinkat(hdr.Linkname, at.parent, at.base)
	case tar.TypeChar:
		return unix.Mknodat(at.parent, at.base, unix.S_IFCHR|0o600, int(dev))
	case tar.TypeBlock:
		return unix.Mknodat(at.parent, at.base, unix.S_IFBLK|0o600, int(dev))
	default:
		return unix.Mknodat(at.parent, at.base, unix.S_IFIFO|0o600, 0)
	}
}

// replace removes what an earlier entry made at this place. The parent is opened again, because the directory that
// the tree remembers may have been below what is gone.
func (u *unpacker) replace(at place) (place, error) {
	if err := u.tree.remove(at); err != nil {
		return at, fmt.Errorf("replace: %w", err)
	}
	parent, err := u.tree.dir(path.Dir(at.name))
	return place{at.name, parent, at.base}, err
}
