// Package untar unpacks one layer of a container image into a directory, in the form that overlayfs wants.
//
// Layers come from strangers and are unpacked by root. What keeps them inside: the parent directory of every entry is
// opened with openat2 and RESOLVE_IN_ROOT, so the kernel itself resolves links of the layer as a chroot would, and
// the last component is only ever used with calls that do not follow links. No path is checked as text and then
// opened as text, so there is no gap between check and use. This is chosen over a chroot in a child process (what
// containers/storage does) because it needs no exec and no copy of the stream through a pipe for each layer.
//
// The layer's directory must belong to the unpacker alone: nobody else may write to it meanwhile.
package untar

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What callers branch on.
var (
	ErrInvalid = errors.New("invalid layer")           // the archive is broken or tries to leave its directory
	ErrLimit   = errors.New("layer exceeds its limit") // the budget or the free space of the disk is used up
)

// Options limits an unpacking. The zero value has no limits.
type Options struct {
	// Budget is shared by all layers that may use it together; nil for none.
	Budget *Budget
	// MinFreeBytes is what must stay free on the file system.
	MinFreeBytes int64
}

// Result says what was unpacked.
type Result struct {
	// Bytes is the disk space of the files, estimated in blocks of 4 KiB; Inodes is exact.
	Bytes, Inodes uint64
	// UIDs and GIDs are all owners, sorted.
	UIDs, GIDs []uint32
	// Implied are directories that had to be made though the layer does not describe them, parents first. Their
	// owner and mode are those of the same directory in the layers below, which only the caller knows. The root is
	// "." and is listed unless the layer describes it.
	Implied []string
}

// bufferBytes is the unit of reading and writing: large enough that system calls do not count.
const bufferBytes = 256 << 10

// Unpack reads a tar archive up to its end marker and writes its entries into dir, which must exist and be empty.
// What it wrote before an error stays there; the caller removes dir.
func Unpack(ctx context.Context, dir string, r io.Reader, o Options) (_ Result, err error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, fmt.Errorf("open %s: %w", dir, err)
	}
	u := &unpacker{
		opts: o,
		root: root,
		tree: newTree(root),
		buf:  make([]byte, bufferBytes),
		uids: map[uint32]bool{},
		gids: map[uint32]bool{},
		dirs: map[string]described{},
	}
	defer u.close()
	defer func() {
		if err != nil {
			o.Budget.give(u.charged)
		}
	}()
	if err := u.entries(ctx, tar.NewReader(bufio.NewReaderSize(r, bufferBytes))); err != nil {
		return Result{}, err
	}
	if err := u.dirTimes(); err != nil {
		return Result{}, err
	}
	return u.result(), nil
}

// unpacker is the state of one Unpack.
type unpacker struct {
	opts Options
	root int // descriptor of the layer's directory
	tree *tree
	buf  []byte

	bytes, inodes uint64
	charged       int64 // bytes taken from the budget
	sinceCheck    int64 // bytes charged since the free space was last looked at
	uids, gids    map[uint32]bool
	dirs          map[string]described // the described directories by name
}

// described is a directory that the archive has an entry of.
type described struct {
	mtime time.Time // is set last
	at    int       // of the tree's removals
}

func (u *unpacker) close() {
	u.tree.close()
	unix.Close(u.root)
}

func (u *unpacker) entries(ctx context.Context, tr *tar.Reader) error {
	for {
		hdr, err := tr.Next()
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, tar.ErrFieldTooLong):
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		case err != nil:
			return err // of the reader below: the network, a digest
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := u.entry(ctx, hdr, tr); err != nil {
			return fmt.Errorf("entry %q: %w", clip(hdr.Name), blame(err))
		}
	}
}

// result lists the implied directories parents first, so that whoever sets their owners can go through in order.
func (u *unpacker) result() Result {
	implied := []string{"."}
	for _, dir := range u.tree.implied {
		if u.tree.stands(dir.name, dir.at) {
			implied = append(implied, dir.name)
		}
	}
	return Result{
		Bytes:   u.bytes,
		Inodes:  u.inodes,
		UIDs:    slices.Sorted(maps.Keys(u.uids)),
		GIDs:    slices.Sorted(maps.Keys(u.gids)),
		Implied: slices.DeleteFunc(implied, u.described),
	}
}

func (u *unpacker) described(dir string) bool {
	d, ok := u.dirs[dir]
	return ok && u.tree.stands(dir, d.at)
}

// blame says that the archive is at fault where the kernel refused what only an odd archive asks for.
func blame(err error) error {
	for _, errno := range []unix.Errno{
		unix.ENAMETOOLONG, unix.ELOOP, unix.ENOTDIR, unix.EISDIR, unix.ENOENT, unix.EINVAL, unix.EXDEV, unix.EMLINK,
		unix.ENOTEMPTY, unix.ERANGE, unix.E2BIG, unix.EEXIST,
	} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrLimit, err)
	}
	return err
}

// clip keeps a name of a hostile length out of logs.
func clip(name string) string {
	const most = 200
	if len(name) <= most {
		return name
	}
	return name[:most] + "…"
}
