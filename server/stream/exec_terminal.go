package stream

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/orlop/orlop/conmon"
)

// execTerminal runs a command on a terminal of its own. The terminal's master comes through a socket as soon as the
// process has its other side.
func (s *Server) execTerminal(ctx context.Context, r conmon.ExecRequest, st streams) (conmon.ExecResult, error) {
	socket, theirs, err := consoleSocket()
	if err != nil {
		return conmon.ExecResult{}, err
	}
	defer socket.Close()
	t := &terminal{server: s, streams: st}
	connected := make(chan error, 1)
	s.spawn(func() { connected <- t.connect(ctx, socket) })
	r.Terminal = true
	result, err := s.monitor.Exec(ctx, r, conmon.Stdio{Console: theirs})
	theirs.Close() // nothing more comes: connect returns
	if noTerminal := <-connected; err == nil {
		err = noTerminal
	}
	t.finish()
	return result, err
}

// consoleSocket makes the socket pair for a terminal's master.
func consoleSocket() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "console")
	f := os.NewFile(uintptr(fds[0]), "console")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
}

// terminal connects a client with the master of a terminal.
type terminal struct {
	streams
	server *Server
	master *os.File // nil until it has come
	output *output
}

// connect waits for the master and begins copying.
func (t *terminal) connect(ctx context.Context, socket *net.UnixConn) (err error) {
	if t.master, err = receiveMaster(socket); err != nil {
		return err
	}
	out := t.out
	if out == nil {
		out = io.Discard // a terminal that nobody reads would stop its process
	}
	t.output = copyOutput(t.server.spawn, t.master, out)
	if t.in != nil {
		// Its end is not the terminal's: that one has no end of input, only the character that its user typed.
		t.server.spawn(func() { _, _ = io.Copy(t.master, t.in) })
	}
	t.server.spawn(func() {
		resize(ctx, t.resize, func(size remotecommand.TerminalSize) { setSize(t.master, size) })
	})
	return nil
}

// finish takes what the process wrote last, and hangs up.
func (t *terminal) finish() {
	if t.master == nil {
		return
	}
	t.output.finish()
	t.master.Close()
}

// receiveMaster takes the descriptor that comes as runc's --console-socket has it: one message with its name.
func receiveMaster(socket *net.UnixConn) (*os.File, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := socket.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("no terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("no terminal: %d control messages after %d bytes", len(messages), n)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("no terminal: %d descriptors", len(fds))
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, os.NewSyscallError("terminal", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// resize passes sizes on until there are no more.
func resize(ctx context.Context, sizes <-chan remotecommand.TerminalSize, set func(remotecommand.TerminalSize)) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			set(size)
		case <-ctx.Done():
			return
		}
	}
}

func setSize(master *os.File, size remotecommand.TerminalSize) {
	raw, err := master.SyscallConn()
	if err != nil {
		return
	}
	// A terminal that has just been hung up has no size.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}
