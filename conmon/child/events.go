package child

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
)

// Events are the ends of some processes as the kernel's process events connector tells them (its messages are in
// <linux/cn_proc.h>), with their status and whoever their parent is. They wait in the socket until somebody reads them,
// so that they are not lost while all who could are being replaced, as long as one process has the socket open.
//
// It needs CAP_NET_ADMIN, and the machine's first PID, user and network namespace.
type Events struct{ Socket *os.File }

// OpenEvents returns a socket to which no end comes until Follow is called.
func OpenEvents() (e Events, err error) {
	e, err = openEvents()
	if errors.Is(err, unix.ECONNREFUSED) { // as in all network namespaces but the first
		err = inFirstNetwork(func() (err error) { e, err = openEvents(); return err })
	}
	if err != nil {
		return Events{}, fmt.Errorf("process events: %w", err)
	}
	return e, nil
}

func openEvents() (Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if err != nil {
		return Events{}, os.NewSyscallError("socket", err)
	}
	e := Events{os.NewFile(uintptr(fd), "events")}
	if err := errors.Join(e.Follow(nil), listen(fd)); err != nil {
		e.Socket.Close()
		return Events{}, err
	}
	return e, nil
}

// inFirstNetwork calls f in the network namespace of process 1.
func inFirstNetwork(f func() error) error {
	first, err := os.Open("/proc/1/ns/net")
	if err != nil {
		return err
	}
	defer first.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends in that namespace
		err := os.NewSyscallError("setns", unix.Setns(int(first.Fd()), unix.CLONE_NEWNET))
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Where the numbers of an event lie, after a struct nlmsghdr and a struct cn_msg.
const (
	eventAt     = unix.SizeofNlMsghdr + 20
	eventWhat   = eventAt
	eventPid    = eventAt + 16 // of the thread; the first thread's is the process's
	eventTgid   = eventPid + 4 // of the process
	eventStatus = eventPid + 8 // as wait(2) has it
	eventEnd    = eventStatus + 4

	whatExit = 0x80000000 // PROC_EVENT_EXIT
)

// eventsMost is how many ends fit into the socket, with what the kernel counts for each.
const eventsMost = 1500

// listen asks for all events. The filter that Follow sets is there before.
func listen(fd int) error {
	const (
		group       = 1 // CN_IDX_PROC, which is the value too
		startListen = 1 // PROC_CN_MCAST_LISTEN
		size        = eventAt + 4
	)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventsMost*512) // it doubles that
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: group}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	var m [size]byte
	put := binary.NativeEndian
	put.PutUint32(m[0:], size)
	put.PutUint16(m[4:], unix.NLMSG_DONE)
	put.PutUint32(m[16:], group)
	put.PutUint32(m[20:], group)
	put.PutUint16(m[32:], 4)
	put.PutUint32(m[eventAt:], startListen)
	return os.NewSyscallError("sendto", unix.Sendto(fd, m[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

// Follow says whose ends are told from now on; what has been told before waits to be read. The kernel drops all other
// events before they cost us anything. Processes beyond the first eventsMost are not followed, and an error says so.
func (e Events) Follow(pids []int) error {
	var err error
	if more := len(pids) - eventsMost; more > 0 {
		err = fmt.Errorf("process events: %d processes too many to be followed", more)
		pids = pids[:eventsMost]
	}
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: eventWhat, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: asLoaded(whatExit), SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadAbsolute{Off: eventPid, Size: 4},
	}
	for _, pid := range pids {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: asLoaded(uint32(pid)), SkipFalse: 1}, bpf.RetConstant{Val: 1 << 16})
	}
	program = append(program, bpf.RetConstant{Val: 0})
	return errors.Join(err, e.filter(program))
}

// asLoaded is a number of this machine as a filter sees it, which takes all for the network's.
func asLoaded(n uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, n))
}

func (e Events) filter(program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	conn, err := e.Socket.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = conn.Control(func(fd uintptr) {
		serr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
	return errors.Join(err, os.NewSyscallError("setsockopt", serr))
}

// Read waits for the next end, has told called, and takes it from the socket after that: if this process is killed
// amid it, the next reader is told again. What is told is the status of the process's first thread when that ended. If
// the whole process went with it, as it does in an exit or by a signal, that is the process's.
func (e Events) Read(told func(pid int, exit conmon.Exit)) error {
	conn, err := e.Socket.SyscallConn()
	if err != nil {
		return err
	}
	var buffer [256]byte
	receive := func(flags int) (n int, err error) {
		cerr := conn.Read(func(fd uintptr) bool {
			n, _, err = unix.Recvfrom(int(fd), buffer[:], flags)
			return !errors.Is(err, unix.EAGAIN)
		})
		return n, errors.Join(cerr, err)
	}
	n, err := receive(unix.MSG_PEEK)
	switch {
	case errors.Is(err, unix.ENOBUFS): // some were lost; it says so once
		return nil
	case err != nil:
		return fmt.Errorf("process events: %w", err)
	}
	if pid, exit, ok := parseEvent(buffer[:n]); ok {
		told(pid, exit)
	}
	_, err = receive(0)
	if errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}

func parseEvent(m []byte) (pid int, exit conmon.Exit, ok bool) {
	if len(m) < eventEnd {
		return 0, exit, false
	}
	number := func(at int) uint32 { return binary.NativeEndian.Uint32(m[at:]) }
	if number(eventWhat) != whatExit || number(eventPid) != number(eventTgid) {
		return 0, exit, false
	}
	return int(number(eventPid)), conmon.DecodeWaitStatus(unix.WaitStatus(number(eventStatus))), true
}
