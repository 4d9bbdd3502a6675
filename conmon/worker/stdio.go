package worker

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/keeper"
	"github.com/orlop/orlop/conmon/wire"
	"github.com/orlop/orlop/conmon/worker/logfile"
)

// attach gives the caller pipes with the container's output from now on, and its standard input itself.
func (w *Worker) attach(m *wire.Message) (any, []*os.File, error) {
	var id string
	if err := m.Decode(&id); err != nil {
		return nil, nil, err
	}
	c, err := w.running(id)
	if err != nil {
		return nil, nil, err
	}
	answer := &conmon.AttachAnswer{StdinOnce: c.stdinOnce}
	var files []*os.File
	stdin := c.file(fileStdin)
	if console := c.file(fileConsole); console != nil {
		stdin, answer.Terminal = console, true
	}
	if stdin != nil {
		dup, err := duplicate(stdin)
		if err != nil {
			return nil, nil, err
		}
		answer.Stdin = true
		files = append(files, dup)
	}
	cl := &client{}
	streams := 2
	if answer.Terminal {
		streams = 1
	}
	for i := range streams {
		keep, give, err := pipe(false)
		if err != nil {
			cl.close()
			return nil, files, err
		}
		cl.out[i] = keep
		files = append(files, give)
	}
	answer.Stderr = streams == 2
	if !c.tap.add(cl) {
		cl.close()
		return nil, files, fmt.Errorf("%w: %s", conmon.ErrNotRunning, id)
	}
	return answer, files, nil
}

func (w *Worker) closeStdin(id string) error {
	c, err := w.get(id)
	if err != nil {
		return err
	}
	f := c.take(fileStdin)
	if f == nil {
		return nil
	}
	w.drop(id, fileStdin)
	return f.Close()
}

func (w *Worker) resize(a conmon.ResizeArgs) error {
	c, err := w.running(a.ID)
	if err != nil {
		return err
	}
	console := c.file(fileConsole)
	if console == nil {
		return fmt.Errorf("container %s has no terminal", a.ID)
	}
	raw, err := console.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: a.Height, Col: a.Width})
	})
	if serr != nil {
		return os.NewSyscallError("TIOCSWINSZ", serr)
	}
	return err
}

// reopenLog goes on in a new file at the log's path.
func (w *Worker) reopenLog(id string) error {
	c, err := w.running(id)
	if err != nil {
		return err
	}
	r, err := w.loadRecord(id)
	if err != nil {
		return err
	}
	if c.log == nil {
		return fmt.Errorf("container %s has no log", id)
	}
	f, err := logfile.Open(r.LogPath)
	if err != nil {
		return err
	}
	return c.log.Reopen(f, func() error {
		c.put(fileLog, f)
		return w.hold(c, fileLog)
	})
}

// duplicate makes another descriptor of the same open file.
func duplicate(f *os.File) (*os.File, error) {
	n, err := keeper.FileNumber(f)
	if err != nil {
		return nil, err
	}
	dup, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(dup), f.Name()), nil
}
