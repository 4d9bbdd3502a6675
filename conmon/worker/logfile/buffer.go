package logfile

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// buffer is what a turn works with.
type buffer struct {
	scratch [2]int // a pipe for copies of the spool; -1 until it is used
	data    []byte
	out     []byte
}

// turns bounds how many copiers work at a time, each with one of these buffers: a container that writes without end
// waits its turn like others do, after each spool.
var turns = func() chan *buffer {
	n := max(2, runtime.GOMAXPROCS(0))
	all := make(chan *buffer, n)
	for range n {
		all <- &buffer{scratch: [2]int{-1, -1}}
	}
	return all
}()

// peek returns all that the spool holds, and leaves it there.
func (b *buffer) peek(spool int) ([]byte, error) {
	if b.scratch[0] < 0 {
		if err := unix.Pipe2(b.scratch[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return nil, os.NewSyscallError("pipe2", err)
		}
		_, _ = unix.FcntlInt(uintptr(b.scratch[0]), unix.F_SETPIPE_SZ, spoolBytes)
		b.data = make([]byte, spoolBytes)
	}
	n, err := unix.Tee(spool, b.scratch[1], spoolBytes, unix.SPLICE_F_NONBLOCK)
	if errors.Is(err, unix.EAGAIN) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("tee", err)
	}
	return b.data[:n], readFull(b.scratch[0], b.data[:n])
}

// consume drops n bytes of the spool.
func (b *buffer) consume(spool, n int) {
	for n > 0 {
		got, err := unix.Read(spool, b.data[:n])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || got == 0 {
			return
		}
		n -= got
	}
}

func readFull(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Read(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		if n == 0 {
			return fmt.Errorf("pipe ended %d bytes early", len(data))
		}
		data = data[n:]
	}
	return nil
}

// pending is how many bytes a pipe holds.
func pending(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

func descriptor(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	err = raw.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}

func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
