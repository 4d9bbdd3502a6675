package stream

import (
	"context"
	"fmt"
	"io"
	"os"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/orlop/orlop/conmon"
)

// streams are a client's ends. In, out and err are nil where it wants none.
type streams struct {
	in       io.Reader
	out, err io.Writer
	tty      bool
	resize   <-chan remotecommand.TerminalSize // may be nil
}

// exec runs a command until it has ended, and returns its exit code. The caller has begun a request.
func (s *Server) exec(ctx context.Context, r conmon.ExecRequest, st streams) (code int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	run := s.execPipes
	if st.tty {
		run = s.execTerminal
	}
	result, err := run(ctx, r, st)
	switch {
	case err != nil && ctx.Err() != nil:
		return -1, fmt.Errorf("container %s: exec %q: %w", r.ID, r.Args[0], ctx.Err())
	case err != nil:
		return -1, err // the monitor has named container and command
	case result.TimedOut:
		return -1, fmt.Errorf("container %s: exec %q: killed after %s: %w", r.ID, r.Args[0], r.Timeout, conmon.ErrTimeout)
	}
	return result.Code, nil
}

// execPipes runs a command without a terminal.
func (s *Server) execPipes(ctx context.Context, r conmon.ExecRequest, st streams) (conmon.ExecResult, error) {
	var stdio conmon.Stdio
	if st.in != nil {
		p, err := newPipe(true)
		if err != nil {
			return conmon.ExecResult{}, err
		}
		defer p.close() // ends a copy that a process does not read; one that waits for the client ends with the client
		stdio.Stdin = p.theirs
		s.spawn(func() { copyInput(p.ours, st.in) })
	}
	var outputs []*output
	for _, slot := range []struct {
		to    io.Writer
		given **os.File
	}{{st.out, &stdio.Stdout}, {st.err, &stdio.Stderr}} {
		if slot.to == nil {
			continue
		}
		p, err := newPipe(false)
		if err != nil {
			return conmon.ExecResult{}, err
		}
		defer p.close()
		*slot.given = p.theirs
		outputs = append(outputs, copyOutput(s.spawn, p.ours, slot.to))
	}
	result, err := s.monitor.Exec(ctx, r, stdio)
	for _, o := range outputs {
		o.finish()
	}
	return result, err
}
