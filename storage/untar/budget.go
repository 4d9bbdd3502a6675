package untar

import (
	"archive/tar"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Budget is a number of bytes that several unpackings share. A nil Budget is unlimited.
type Budget struct {
	limit int64
	left  atomic.Int64
}

// NewBudget allows limit bytes; with zero or less it is unlimited.
func NewBudget(limit int64) *Budget {
	if limit <= 0 {
		return nil
	}
	b := &Budget{limit: limit}
	b.left.Store(limit)
	return b
}

func (b *Budget) take(n int64) error {
	if b != nil && b.left.Add(-n) < 0 {
		return fmt.Errorf("%w: more than %d bytes unpacked", ErrLimit, b.limit)
	}
	return nil
}

// give puts back what was taken for a layer that is not kept, so that a second attempt at it has the same room.
func (b *Budget) give(n int64) {
	if b != nil {
		b.left.Add(n)
	}
}

const (
	blockBytes = 4096 // what a file system gives out
	// headerBytes is charged for each entry, so that a layer of a billion empty files has an end.
	headerBytes = 512
	// checkBytes is how much may be written between two looks at the free space.
	checkBytes = 16 << 20
	// minFreeInodes stay for the rest of the machine, on file systems that count them.
	minFreeInodes = 1024
)

// charge pays for an entry before it is written: with its whole size, so that a file too large is not even begun.
func (u *unpacker) charge(hdr *tar.Header) error {
	size := max(hdr.Size, 0)
	if hdr.Typeflag == tar.TypeDir {
		size = blockBytes
	}
	u.charged += size + headerBytes
	if err := u.opts.Budget.take(size + headerBytes); err != nil {
		return err
	}
	blocks := (size + blockBytes - 1) / blockBytes * blockBytes
	u.bytes += uint64(blocks)
	u.sinceCheck += blocks + headerBytes
	if u.opts.MinFreeBytes <= 0 || (u.sinceCheck < checkBytes && u.inodes > 0) {
		return nil
	}
	u.sinceCheck = 0
	return checkFree(u.root, u.opts.MinFreeBytes+size)
}

func checkFree(root int, want int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(root, &st); err != nil {
		return fmt.Errorf("free space: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < want {
		return fmt.Errorf("%w: %d bytes free on the disk, %d needed", ErrLimit, free, want)
	}
	if st.Files > 0 && st.Ffree < minFreeInodes {
		return fmt.Errorf("%w: %d inodes free on the disk, %d needed", ErrLimit, st.Ffree, minFreeInodes)
	}
	return nil
}
