package logs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// advance goes on to the file that follows the current one, once all of that is read. It stays where it is while the
// next file is empty: the runtime may write to the old one until it writes to the new one.
func (r *reader) advance() (moved bool, err error) {
	truncated, err := r.rewound()
	if truncated || err != nil {
		return truncated, err
	}
	next, err := r.successor()
	if next == nil || err != nil {
		return false, err
	}
	if err := r.drain(); err != nil { // what came between the last read and the first byte of the next file
		next.Close()
		return false, err
	}
	r.cur.Close()
	r.cur = next
	return true, nil
}

// rewound goes to the start of a file that has become shorter, as tools that copy and truncate logs leave it.
func (r *reader) rewound() (bool, error) {
	at, err := r.cur.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, err
	}
	info, err := r.cur.file.Stat()
	if err != nil || info.Size() >= at {
		return false, err
	}
	if _, err := r.cur.file.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	r.cur.r.Reset(r.cur.file)
	r.pending = r.pending[:0]
	return true, nil
}

// successor opens the next file; nil if there is none yet. Files are renamed while it looks, so it looks until it
// finds the same one before and after it was opened.
func (r *reader) successor() (*segment, error) {
	const tries = 10
	for range tries {
		name, err := r.nextName()
		if name == "" || err != nil {
			return nil, err
		}
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		again, err := r.nextName()
		if err == nil && isAt(f, again) {
			return segmentOf(f, name)
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, nil // the next look will find it
}

func isAt(f *os.File, name string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(name)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

func segmentOf(f *os.File, name string) (*segment, error) {
	if !strings.HasSuffix(name, gzipSuffix) {
		return &segment{f, bufio.NewReaderSize(f, readBytes)}, nil
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &segment{f, bufio.NewReaderSize(z, readBytes)}, nil
}

// nextName is the name of the file that follows the current one; "" if there is none with a byte in it.
func (r *reader) nextName() (string, error) {
	if isAt(r.cur.file, r.path) {
		return "", nil
	}
	stamp := r.stamp()
	files, err := rotated(r.path)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if stamp != "" && stampOf(r.path, f) > stamp {
			return f, nil
		}
	}
	info, err := os.Stat(r.path)
	if errors.Is(err, os.ErrNotExist) || (err == nil && info.Size() == 0) {
		return "", nil
	}
	return r.path, err
}

// stamp is that of the current file. The kernel knows the name of an open file also after it was renamed, and removed.
func (r *reader) stamp() string {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.cur.file.Fd()))
	if err != nil {
		return ""
	}
	return stampOf(r.path, strings.TrimSuffix(name, " (deleted)"))
}
