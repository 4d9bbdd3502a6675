package stream

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/orlop/orlop/conmon"
)

// callTime bounds a call to the monitor that is made for a client who has gone already.
const callTime = 10 * time.Second

// attach connects a client to a container's standard streams until the container ends or the client goes. The
// container notices the latter only if its standard input is for one client alone. The caller has begun a
// request.
func (s *Server) attach(ctx context.Context, id string, st streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	a, err := s.monitor.Attach(ctx, id)
	if err != nil {
		return fmt.Errorf("container %s: attach: %w", id, err)
	}
	end := &attached{Attachment: a, server: s, id: id}
	defer end.close()
	if err := end.unblock(); err != nil {
		return fmt.Errorf("container %s: attach: %w", id, err)
	}
	if st.in != nil && a.Stdin != nil {
		s.spawn(func() { end.copyStdin(ctx, st.in) })
	}
	if a.Terminal {
		s.spawn(func() { end.resize(ctx, st.resize) })
	}
	outputs := []*output{copyOutput(s.spawn, a.Stdout, orDiscard(st.out))}
	if a.Stderr != nil {
		outputs = append(outputs, copyOutput(s.spawn, a.Stderr, orDiscard(st.err)))
	}
	for _, o := range outputs {
		select {
		case <-o.done:
		case <-ctx.Done():
			return nil // closing the files ends the copies
		}
	}
	return nil
}

// orDiscard is for outputs that the client does not want: if they were not read, the container would have to wait.
func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// attached is one client's attachment. Its files are closed when the client or the container has gone, which ends
// what copies from and to them.
type attached struct {
	*conmon.Attachment
	server *Server
	id     string
}

func (a *attached) files() []**os.File { return []**os.File{&a.Stdin, &a.Stdout, &a.Stderr} }

func (a *attached) close() {
	for _, f := range a.files() {
		if *f != nil {
			(*f).Close()
		}
	}
}

// unblock makes the files such that closing them ends reads and writes under way. The descriptors came from another
// process, in whatever mode.
func (a *attached) unblock() error {
	for _, f := range a.files() {
		if *f == nil {
			continue
		}
		pollable, err := nonblocking(*f)
		if err != nil {
			return err
		}
		(*f).Close()
		*f = pollable
	}
	return nil
}

// nonblocking is another descriptor of the same open file, which then does not block.
func nonblocking(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	dup, dupErr := -1, error(nil)
	err = raw.Control(func(fd uintptr) { dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("dup", dupErr)
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		unix.Close(dup)
		return nil, os.NewSyscallError("attach", err)
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}

// copyStdin copies the client's input. With stdin_once the container's input ends with the client's.
func (a *attached) copyStdin(ctx context.Context, in io.Reader) {
	_, _ = io.Copy(a.Stdin, in) // the client or the container has gone: both are the end of it
	if !a.StdinOnce {
		return
	}
	a.Stdin.Close() // the container's input ends when nobody has the other end any more: we, and the monitor
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	if err := a.server.monitor.CloseStdin(ctx, a.id); err != nil {
		a.server.log.Debug("standard input stays open", "container", a.id, "err", err)
	}
}

func (a *attached) resize(ctx context.Context, sizes <-chan remotecommand.TerminalSize) {
	resize(ctx, sizes, func(size remotecommand.TerminalSize) {
		if err := a.server.monitor.Resize(ctx, a.id, size.Width, size.Height); err != nil {
			a.server.log.Debug("terminal keeps its size", "container", a.id, "err", err)
		}
	})
}
