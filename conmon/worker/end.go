package worker

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/child"
	"github.com/orlop/orlop/conmon/keeper"
)

// drainTime bounds how long the end of a container waits for its last output to be in its log.
const drainTime = 2 * time.Second

// watch waits for the end of a container that is this process's child, and records it before it is reaped: if this
// process is killed between the two, the keeper gets the zombie, and finds the record.
func (w *Worker) watch(c *container) {
	pidfd := c.file(filePidfd)
	if pidfd == nil || child.Ended(pidfd) != nil {
		return
	}
	n, err := keeper.FileNumber(pidfd)
	if err != nil {
		return
	}
	pid, exit, err := child.PeekFD(n)
	if err != nil || pid == 0 {
		w.log.Error("exit status is lost", "container", c.id, "err", err)
		exit = conmon.UnknownExit()
	}
	exit = w.record(c, exit) // meanwhile it stays a zombie, which the keeper gets if this process is killed
	child.Reap(pid)
	w.end(c, exit)
}

// record returns when the exit has been written down: nobody may be told of one that could be lost. The first exit that
// was recorded counts, and is returned.
func (w *Worker) record(c *container, exit conmon.Exit) conmon.Exit {
	exit, err := conmon.RecordExit(w.cfg.ExitDir, c.id, exit, c.oom)
	if err == nil {
		return exit
	}
	w.log.Error("exit is not recorded yet", "container", c.id, "code", exit.Code, "err", err)
	exit, ok := conmon.InsistExit(w.cfg.ExitDir, c.id, exit, c.oom, func() bool { return w.find(c.id) == c })
	if ok {
		w.log.Info("exit is recorded", "container", c.id, "code", exit.Code)
	}
	return exit
}

// end is for an exit that has been recorded: the log is completed, everybody is told, and what nobody needs any more
// is closed.
func (w *Worker) end(c *container, exit conmon.Exit) {
	c.endOnce.Do(func() {
		if c.sharesPIDs { // what its first process leaves behind is the container's too
			if err := w.runtime.Signal(c.id, unix.SIGKILL); err != nil {
				w.log.Debug("nothing left to kill", "container", c.id, "err", err)
			}
		}
		c.drain()
		c.noteStarted()
		c.exit.Store(&exit)
		close(c.ended)
		w.tell(conmon.MethodExited, conmon.Event{ID: c.id, Exit: exit})
		c.release()
		w.drop(c.id, "")
		w.journal.Free(c.slot)
	})
}

// drain writes what is in the pipes to the log. It does not wait for those who may still hold the other ends.
func (c *container) drain() {
	done := make(chan struct{})
	if len(c.copiers) == 0 {
		go func() {
			defer close(done)
			c.copying.Wait() // a terminal ends with its last process
		}()
	} else {
		c.copying.Go(func() {
			defer close(done)
			for _, cp := range c.copiers {
				cp.Drain()
			}
		})
	}
	select {
	case <-done:
	case <-time.After(drainTime):
	}
}

// errDead is what starting a container is answered that has ended before.
var errDead = errors.New("its process has ended already")
