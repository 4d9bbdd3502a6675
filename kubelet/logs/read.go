package logs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options say what to read. See v1.PodLogOptions for the meaning of each.
type Options struct {
	TailLines  *int64 // lines of the file: a part of a long line counts as one
	LimitBytes *int64
	Since      time.Time
	Timestamps bool
	Stdout     io.Writer // nil if it is not wanted
	Stderr     io.Writer // the same
	Flush      func()    // called before Read waits; may be nil

	Follow bool
	Ended  func() bool // the container will write no more; only needed to follow
}

// checkPeriod is how often a reader that follows looks whether the container has ended, and for what the kernel did
// not tell.
const checkPeriod = time.Second

// lastLook is how long a container's last lines may take after its end was told: some runtimes tell it first.
const lastLook = 100 * time.Millisecond

// errEnough ends a read that has all it wants.
var errEnough = errors.New("enough")

// Read writes a log to o.Stdout and o.Stderr: the current file, and if it is followed those that come after it, until
// the container has ended or ctx ends, which is no error.
func Read(ctx context.Context, path string, o Options) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	f, err := openPlain(path)
	if err != nil {
		return err
	}
	r := &reader{path: path, o: o, out: newOutput(o), cur: f}
	defer r.close()
	if o.TailLines != nil {
		if err := r.seekTail(*o.TailLines); err != nil {
			return fmt.Errorf("log %s: tail: %w", path, err)
		}
	}
	if o.Follow {
		err = r.follow(ctx)
	} else {
		err = r.all()
	}
	r.flush()
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("log %s: %w", path, err)
	}
	return nil
}

// reader is one Read.
type reader struct {
	path    string
	o       Options
	out     *output
	cur     *segment
	pending []byte // a line that has no end yet; it may end in the next segment
	watch   *fsnotify.Watcher
}

func (r *reader) close() {
	r.cur.Close()
	if r.watch != nil {
		r.watch.Close()
	}
}

func (r *reader) flush() {
	if r.o.Flush != nil {
		r.o.Flush()
	}
}

func (r *reader) seekTail(lines int64) error {
	at, err := tailStart(r.cur.file, lines)
	if err != nil {
		return err
	}
	if _, err = r.cur.file.Seek(at, io.SeekStart); err != nil {
		return err
	}
	if !r.o.Follow { // lines that are written meanwhile are none of the last ones
		r.out.lines = lines
	}
	return nil
}

// all reads the current file, the line without an end as well.
func (r *reader) all() error {
	if r.out.lines == 0 {
		return nil
	}
	if err := r.drain(); err != nil {
		return err
	}
	return r.writePending()
}

func (r *reader) writePending() error {
	if len(r.pending) == 0 {
		return nil
	}
	return r.out.write(r.pending)
}

// drain reads what is there of the current segment.
func (r *reader) drain() error {
	for {
		part, err := r.cur.r.ReadSlice('\n')
		switch {
		case err == nil && len(r.pending) == 0:
			err = r.out.write(part)
		case err == nil:
			err = r.out.write(append(r.pending, part...))
			r.pending = r.pending[:0]
		case errors.Is(err, bufio.ErrBufferFull):
			r.pending, err = append(r.pending, part...), nil
		case errors.Is(err, io.EOF):
			r.pending = append(r.pending, part...)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *reader) follow(ctx context.Context) error {
	looked := false
	for ctx.Err() == nil {
		ended := r.o.Ended() // asked before reading, so that its last lines are read
		if err := r.drain(); err != nil {
			return err
		}
		moved, err := r.advance()
		switch {
		case err != nil:
			return err
		case moved:
		case ended && (looked || r.watch == nil):
			return r.writePending()
		case ended:
			looked = true
			r.wait(ctx, lastLook)
		default:
			r.flush()
			r.wait(ctx, checkPeriod)
		}
	}
	return nil
}

// wait returns when the directory has changed, and at the latest after limit. Without a watch, as when the kernel's limit
// of them is reached, the limit alone must do.
func (r *reader) wait(ctx context.Context, limit time.Duration) {
	if r.watch == nil {
		if w, err := fsnotify.NewWatcher(); err == nil {
			r.watch = w
			if w.Add(filepath.Dir(r.path)) == nil {
				return // what was written before is not told
			}
		}
	}
	var (
		events chan fsnotify.Event
		errs   chan error // an overflow of the queue: something was written
	)
	if r.watch != nil {
		events, errs = r.watch.Events, r.watch.Errors
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-errs:
	case <-events:
		for { // one read serves all that have come
			select {
			case <-events:
			default:
				return
			}
		}
	}
}

// segment is an open log file.
type segment struct {
	file *os.File
	r    *bufio.Reader
}

func (s *segment) Close() error { return s.file.Close() }

// readBytes is more than a line of 16 KiB, the most that runtimes write, so that lines are seldom copied.
const readBytes = 64 << 10

func openPlain(path string) (*segment, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &segment{f, bufio.NewReaderSize(f, readBytes)}, nil
}
