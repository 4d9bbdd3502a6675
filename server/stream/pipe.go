package stream

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pipe is one stream between us and a process.
type pipe struct{ ours, theirs *os.File }

// newPipe makes a pipe that the process writes, or reads if input is set. Only our end never blocks: programs don't
// expect EAGAIN from their standard streams.
func newPipe(input bool) (pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return pipe{}, os.NewSyscallError("pipe", err)
	}
	ours, theirs := fds[0], fds[1]
	if input {
		ours, theirs = theirs, ours
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		return pipe{}, errors.Join(os.NewSyscallError("pipe", err), unix.Close(ours), unix.Close(theirs))
	}
	return pipe{os.NewFile(uintptr(ours), "|0"), os.NewFile(uintptr(theirs), "|1")}, nil
}

func (p pipe) close() {
	p.ours.Close()
	p.theirs.Close()
}

const (
	copyBytes = 32 << 10
	// maxLeft is the most that a process can make a pipe hold (pipe(7), pipe-max-size), so it takes all that a process
	// wrote before its end, and bounds what its grandchildren can add.
	maxLeft = 1 << 20
)

// buffers are for copies: a probe that writes a line should not cost tens of kilobytes each time.
var buffers = sync.Pool{New: func() any { return new([copyBytes]byte) }}

// output copies what a process writes to a client, until the stream ends or finish is called.
type output struct {
	from *os.File // does not block
	to   io.Writer
	done chan struct{}
}

// copyOutput starts copying; spawn runs a function in a goroutine.
func copyOutput(spawn func(func()), from *os.File, to io.Writer) *output {
	o := &output{from: from, to: to, done: make(chan struct{})}
	spawn(func() {
		defer close(o.done)
		o.copy()
	})
	return o
}

func (o *output) copy() {
	buf := buffers.Get().(*[copyBytes]byte)
	defer buffers.Put(buf)
	for {
		n, err := o.from.Read(buf[:])
		if n > 0 {
			o.write(buf[:n])
		}
		if err != nil {
			return // the end, a deadline, or EIO: a terminal that nobody has open any more
		}
	}
}

// write goes on reading for a client that has gone: the process should end by its own or the context's doing, not
// hang on a full pipe.
func (o *output) write(b []byte) {
	if _, err := o.to.Write(b); err != nil {
		o.to = io.Discard
	}
}

// finish takes what is in the stream after its process has ended. It does not wait for others that hold it open.
func (o *output) finish() {
	_ = o.from.SetReadDeadline(time.Now()) // ends the copy, unless it has ended
	<-o.done
	if o.from.SetReadDeadline(time.Time{}) != nil {
		return
	}
	buf := buffers.Get().(*[copyBytes]byte)
	defer buffers.Put(buf)
	for left := maxLeft; left > 0; {
		n := readNow(o.from, buf[:min(left, len(buf))])
		if n <= 0 {
			return
		}
		o.write(buf[:n])
		left -= n
	}
}

// readNow reads what is there; 0 or less if nothing is.
func readNow(f *os.File, buf []byte) (n int) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), buf)
			if err != unix.EINTR {
				return true // also on EAGAIN: not to wait is the point
			}
		}
	})
	if err != nil {
		return 0
	}
	return n
}

// copyInput copies what a client sends to a process, and then closes the stream.
func copyInput(to *os.File, from io.Reader) {
	_, _ = io.Copy(to, from) // a process that takes no more, or a client that has gone: both are the end of it
	to.Close()
}
