package logfile

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spoolBytes is the spool's capacity: twice a pipe's default, so that an unfinished line of maxLine and all that a
// full pipe holds fit in it together.
const spoolBytes = 128 << 10

// NewSpool makes a spool pipe, open for reading and writing in one descriptor.
func NewSpool() (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, spoolBytes) // smaller works too
	fd, err := unix.Open(procFD(fds[0]), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("open pipe", err)
	}
	return os.NewFile(uintptr(fd), "spool"), nil
}

// Tap is who else gets the output.
type Tap interface {
	// Open tells whether anybody listens.
	Open() bool
	// Write is given each byte once, while Open. It may block, and stalls this one stream then.
	Write(output []byte)
}

// Copier moves one stream from a pipe to a log.
type Copier struct {
	log    *Log // nil drops the output
	stream Stream
	src    *os.File
	rawSrc syscall.RawConn
	spool  *os.File
	spoolN int // the spool's descriptor
	tap    Tap
	slog   *slog.Logger

	mu     sync.Mutex // guards a turn, and what follows
	tapped int        // bytes in the spool that the tap has been given
	failed bool       // the last write failed: warn once, not for each turn
}

// NewCopier does not read yet. src must be non-blocking. l may be nil, and the output is dropped.
func NewCopier(l *Log, s Stream, src, spool *os.File, tap Tap, log *slog.Logger) (*Copier, error) {
	raw, err := src.SyscallConn()
	if err != nil {
		return nil, err
	}
	n, err := descriptor(spool)
	if err != nil {
		return nil, err
	}
	return &Copier{log: l, stream: s, src: src, rawSrc: raw, spool: spool, spoolN: n, tap: tap, slog: log}, nil
}

// Run copies until the pipe's last writer is gone or the pipe is closed.
func (c *Copier) Run() {
	c.work(false) // what a killed worker left in the spool
	for {
		n, full, err := c.fetch()
		if err != nil || (n == 0 && !full) {
			c.work(true)
			return
		}
		c.work(full)
	}
}

// Drain copies what is in the pipe now, and returns. It may run beside Run.
func (c *Copier) Drain() {
	for {
		var n int64
		var err error
		if c.rawSrc.Control(func(fd uintptr) { n, err = c.splice(int(fd)) }) != nil || n <= 0 || err != nil {
			break
		}
		c.work(false)
	}
	c.work(false)
}

// fetch waits for output and moves it to the spool. full says that the spool had no room.
func (c *Copier) fetch() (n int64, full bool, err error) {
	rerr := c.rawSrc.Read(func(fd uintptr) bool {
		n, err = c.splice(int(fd))
		if errors.Is(err, unix.EAGAIN) {
			err = nil
			full = pending(int(fd)) > 0
			return full
		}
		return true
	})
	if rerr != nil {
		return 0, false, rerr
	}
	return n, full, err
}

func (c *Copier) splice(fd int) (int64, error) {
	for {
		n, err := unix.Splice(fd, nil, c.spoolN, nil, spoolBytes, unix.SPLICE_F_NONBLOCK)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// work writes what the spool holds to the log, and consumes it.
func (c *Copier) work(flush bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if output := c.turnLocked(flush); output != nil {
		c.tap.Write(output)
	}
}

// turnLocked returns a copy of what the tap has not had yet, nil if it is not open.
func (c *Copier) turnLocked(flush bool) []byte {
	b := <-turns
	defer func() { turns <- b }()
	data, err := b.peek(c.spoolN)
	if err != nil {
		c.slog.Error("log spool is unreadable", "err", err)
		return nil
	}
	if len(data) == 0 {
		return nil
	}
	var output []byte
	if c.tap.Open() && len(data) > c.tapped {
		output = bytes.Clone(data[c.tapped:])
	}
	used := len(data)
	if c.log != nil {
		used = c.log.turn(c, b, data, flush)
	} else {
		b.consume(c.spoolN, used)
	}
	c.tapped = len(data) - used
	return output
}

func (l *Log) turn(c *Copier, b *buffer, data []byte, flush bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	out, used, partial := format(b.out[:0], data, c.stream, now, flush)
	b.out = out
	if used == 0 {
		return 0
	}
	l.slot.announce(turn{
		stream: c.stream, start: l.sizeLocked(), spooled: int64(len(data)),
		take: int64(used), put: int64(len(out)), nanos: now.UnixNano(), flush: flush,
	})
	err := l.appendLocked(out)
	if err != nil && !c.failed {
		// The container goes on: a full log disk must not stop it.
		c.slog.Error("log can't be written: output is dropped until it can", "err", err)
	}
	c.failed = err != nil
	b.consume(c.spoolN, used)
	l.slot.clear()
	l.markLocked(c.stream, partial)
	return used
}

// Recover finishes the turn that the last worker was killed in. It must be called before any copier of the log runs.
func (l *Log) Recover(copiers ...*Copier) {
	t, ok := l.slot.read()
	if !ok {
		return
	}
	defer l.slot.clear()
	for _, c := range copiers {
		if c.stream == t.stream {
			c.finish(t)
		}
	}
}

func (c *Copier) finish(t turn) {
	left := int64(pending(c.spoolN))
	gone := t.spooled - left
	if gone < 0 || gone > t.take {
		return // not this turn's spool: it was cleared, or never filled
	}
	b := <-turns
	defer func() { turns <- b }()
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if gone == 0 { // consuming had not begun, so the log may lack some
		data, err := b.peek(c.spoolN)
		if err != nil {
			c.slog.Error("log spool is unreadable", "err", err)
			return
		}
		out, used, partial := format(b.out[:0], data, c.stream, time.Unix(0, t.nanos), t.flush)
		b.out = out
		written := min(max(c.log.sizeLocked()-t.start, 0), int64(len(out)))
		if err := c.log.appendLocked(out[written:]); err != nil {
			c.slog.Error("log can't be written: output is dropped", "err", err)
		}
		c.log.markLocked(c.stream, partial)
		b.consume(c.spoolN, used)
		return
	}
	b.consume(c.spoolN, int(t.take-gone))
}
