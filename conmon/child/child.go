// Package child learns how processes end: children by waitid(2), others by their pidfd.
package child

import (
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

// Ended waits until the process of a pidfd has ended; os.ErrClosed if the file is closed meanwhile.
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

// StatusOf learns the end of a process that is not our child and has ended. Since Linux 6.15 its pidfd keeps it, from
// the moment in which its parent reaps it (ioctl_pidfd(2), PIDFD_INFO_EXIT); until then it is somebody's zombie. On
// older kernels there is only the zombie; if that is missed, the exit is unknown.
func StatusOf(pidfd *os.File, pid int) conmon.Exit {
	if ws, ok := pidfdStatus(pidfd); ok {
		return conmon.DecodeWaitStatus(ws)
	}
	if ws, ok := zombieStatus(pid); ok {
		return conmon.DecodeWaitStatus(ws)
	}
	if ws, ok := pidfdStatus(pidfd); ok { // it was reaped between the two
		return conmon.DecodeWaitStatus(ws)
	}
	return conmon.UnknownExit()
}

// pidfdInfo is struct pidfd_info of <linux/pidfd.h> in its first version.
type pidfdInfo struct {
	mask, cgroup    uint64
	pid, tgid, ppid uint32
	credentials     [8]uint32
	exitCode        int32
}

const (
	pidfdInfoExit = 1 << 3
	pidfdGetInfo  = 0xc040ff0b // _IOWR(0xFF, 11, 64 bytes)
)

func pidfdStatus(pidfd *os.File) (unix.WaitStatus, bool) {
	info := pidfdInfo{mask: pidfdInfoExit}
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return 0, false
	}
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	})
	if err != nil || errno != 0 || info.mask&pidfdInfoExit == 0 {
		return 0, false
	}
	return unix.WaitStatus(uint32(info.exitCode)), true
}

func zombieStatus(pid int) (unix.WaitStatus, bool) {
	f, err := statFields(pid)
	if err != nil || len(f) < 50 || f[0] != "Z" {
		return 0, false
	}
	code, err := strconv.Atoi(f[49]) // field 52 of proc_pid_stat(5)
	return unix.WaitStatus(uint32(code)), err == nil
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
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, err
	}
	_, rest, ok := strings.Cut(string(data), ") ")
	for ok { // a name may hold ") "
		var more string
		if _, more, ok = strings.Cut(rest, ") "); ok {
			rest = more
		}
	}
	f := strings.Fields(rest)
	if len(f) < 2 {
		return nil, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	return f, nil
}
