// Package child learns how processes end: children by waitid(2), others by their pidfd.
package child

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
)

// siginfo is the part of siginfo_t that waitid(2) fills, as it lies in memory on 64-bit machines.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

// Peek returns a child that has ended and leaves it a zombie, so that what it said can be written down before it is
// lost. pid is 0 if no child has ended.
func Peek() (pid int, exit conmon.Exit, err error) {
	return wait(unix.P_ALL, 0, unix.WNOHANG|unix.WNOWAIT)
}

// PeekFD does the same for the child of a pidfd.
func PeekFD(pidfd int) (pid int, exit conmon.Exit, err error) {
	return wait(unix.P_PIDFD, pidfd, unix.WNOHANG|unix.WNOWAIT)
}

// Reap ends the zombie that Peek showed.
func Reap(pid int) { _, _, _ = wait(unix.P_PID, pid, unix.WNOHANG) }

func wait(kind, id, flags int) (int, conmon.Exit, error) {
	var info siginfo
	for {
		err := unix.Waitid(kind, id, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|flags, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, conmon.Exit{}, err
		case info.pid == 0:
			return 0, conmon.Exit{}, nil
		}
		return int(info.pid), conmon.DecodeExit(int(info.code), int(info.status)), nil
	}
}

// OpenFD returns a pidfd that a goroutine can wait on without a thread.
func OpenFD(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// Ended waits until the process of a pidfd has ended; os.ErrClosed if the file is closed meanwhile, and
// os.ErrDeadlineExceeded if that of the file has passed.
func Ended(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return err == nil && n > 0
	})
}

// Parent returns the parent of a process.
func Parent(pid int) (int, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(f[1])
}

// statFields are those of proc_pid_stat(5) from the third on: the second may hold anything.
func statFields(pid int) ([]string, error) {
	data, err := os.ReadFile(statPath(pid))
	if err != nil {
		return nil, err
	}
	f := parseStat(data)
	if len(f) < 2 {
		return nil, fmt.Errorf("%s: %d fields", statPath(pid), len(f))
	}
	return f, nil
}

func statPath(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/stat" }

func parseStat(data []byte) []string {
	end := bytes.LastIndex(data, []byte(") ")) // a name may hold it, too
	if end < 0 {
		return nil
	}
	return strings.Fields(string(data[end+2:]))
}
