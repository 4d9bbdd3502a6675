package child

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
)

// Foreign is a process that is not our child and whose end is to be learned.
type Foreign struct{ pidfd, stat int }

// OpenForeign opens what Watch needs; it leaves the file to its owner. The process may have ended.
func OpenForeign(pidfd *os.File, pid int) (Foreign, error) {
	f := Foreign{pidfd: -1}
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return f, err
	}
	var derr error
	err = raw.Control(func(fd uintptr) { f.pidfd, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		return f, err
	}
	if derr != nil {
		return f, os.NewSyscallError("dup", derr)
	}
	f.stat, err = unix.Open(statPath(pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.stat = -1 // it is gone, and its pidfd may tell more
	}
	return f, nil
}

func (f Foreign) close() {
	_ = unix.Close(f.pidfd)
	if f.stat >= 0 {
		_ = unix.Close(f.stat)
	}
}

// Await waits for the end of one process, and closes it. pidfd is what it was opened with: closing that ends the wait.
func (f Foreign) Await(pidfd *os.File) (conmon.Exit, error) {
	defer f.close()
	if err := Ended(pidfd); err != nil {
		return conmon.Exit{}, err
	}
	return f.exit(), nil
}

// Watch calls ended with the index of each process when it has ended, and returns after the last one. It closes them.
//
// Where a pidfd does not keep the status (see KeepsExit) it races for the zombie against the parent that reaps it, so it
// has a thread of its own that the kernel prefers, and does nothing slow on it; ended should not either.
func Watch(all []Foreign, ended func(i int, exit conmon.Exit)) error {
	runtime.LockOSThread() // and never unlocked: the thread ends with its priority
	preferThread()
	polls, left := make([]unix.PollFd, len(all)), len(all)
	for i, f := range all {
		polls[i] = unix.PollFd{Fd: int32(f.pidfd), Events: unix.POLLIN}
	}
	for left > 0 {
		if _, err := unix.Poll(polls, -1); err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		for i := range polls {
			if polls[i].Revents == 0 {
				continue
			}
			ended(i, all[i].exit())
			all[i].close()
			polls[i] = unix.PollFd{Fd: -1} // which poll(2) passes over
			left--
		}
	}
	return nil
}

// preferThread lets this thread run before all usual ones; it only waits. Without the privilege it stays as it is.
func preferThread() {
	const resetOnFork = 1 // SCHED_FLAG_RESET_ON_FORK of <linux/sched.h>
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: resetOnFork,
	}, 0)
}

// exit is that of a process that has ended: a zombie tells it until it is reaped, and since Linux 6.15 the pidfd from
// then on (ioctl_pidfd(2), PIDFD_INFO_EXIT). If both fail, it is unknown, and [Events] may tell it.
func (f Foreign) exit() conmon.Exit {
	if ws, ok := f.zombieStatus(); ok {
		return conmon.DecodeWaitStatus(ws)
	}
	if ws, ok := f.pidfdStatus(); ok {
		return conmon.DecodeWaitStatus(ws)
	}
	return conmon.UnknownExit()
}

func (f Foreign) zombieStatus() (unix.WaitStatus, bool) {
	var buffer [1024]byte // more than numbers of 64 bits in 52 fields take on one line
	n, err := unix.Pread(f.stat, buffer[:], 0)
	if err != nil {
		return 0, false
	}
	fields := parseStat(buffer[:n])
	if len(fields) < 50 || fields[0] != "Z" {
		return 0, false
	}
	code, err := strconv.Atoi(fields[49]) // field 52 of proc_pid_stat(5)
	return unix.WaitStatus(uint32(code)), err == nil
}

// KeepsExit tells whether a pidfd tells the status of a process that its parent has reaped.
func KeepsExit() bool {
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 15)
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

func (f Foreign) pidfdStatus() (unix.WaitStatus, bool) {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return 0, false
	}
	return unix.WaitStatus(uint32(info.exitCode)), true
}
