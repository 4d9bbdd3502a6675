package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/child"
	"github.com/orlop/orlop/conmon/keeper"
	"github.com/orlop/orlop/conmon/worker/logfile"
	"github.com/orlop/orlop/oci/runtime"
)

// taken is what the keeper held for a container when this worker started.
type taken struct {
	pid   int
	files map[string]*os.File
}

// recover goes on from where the last worker was killed: with what the keeper holds, the records, and the exits.
func (w *Worker) recover(ctx context.Context) error {
	for _, dir := range []string{w.recordDir(), w.cfg.ExitDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	held, err := w.takeAll(ctx)
	if err != nil {
		return err
	}
	if err := w.openJournal(held[keeper.Node]); err != nil {
		return err
	}
	w.events = held[keeper.Node].files[keeper.FileEvents]
	delete(held, keeper.Node)
	records, err := w.loadRecords()
	if err != nil {
		return err
	}
	for _, r := range records { // all slots first: none of them is free for a container that is being made
		if held[r.ID].files[fileLog] == nil {
			r.LogSlot = noSlot // it ended and gave its slot back, which may be another's by now
		}
		if r.LogSlot != noSlot {
			if err := w.journal.Reserve(r.LogSlot); err != nil {
				return err
			}
		}
	}
	for _, r := range records {
		if err := w.adopt(ctx, r, held[r.ID]); err != nil {
			w.log.Error("container is not adopted", "container", r.ID, "err", err)
		}
		delete(held, r.ID)
	}
	for id, t := range held { // of a container whose delete was cut short
		t.close()
		w.drop(id, "")
	}
	return w.listExits()
}

func (w *Worker) takeAll(ctx context.Context) (map[string]taken, error) {
	var ids []string
	if _, err := w.link.Call(ctx, keeper.MethodIDs, nil, &ids); err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	held := map[string]taken{}
	for _, id := range ids {
		var h keeper.Hold
		files, err := w.link.Call(ctx, keeper.MethodTake, id, &h)
		if err != nil {
			return nil, fmt.Errorf("keeper: %w", err)
		}
		t := taken{h.Pid, map[string]*os.File{}}
		for i, name := range h.Names {
			t.files[name] = files[i]
		}
		held[id] = t
	}
	return held, nil
}

func (t taken) close() {
	for _, f := range t.files {
		f.Close()
	}
}

func (w *Worker) openJournal(t taken) (err error) {
	if f := t.files[keeper.FileJournal]; f != nil {
		w.journal, err = logfile.OpenJournal(f)
		return err
	}
	if w.journal, err = logfile.NewJournal(); err != nil {
		return err
	}
	return w.link.Notify(keeper.MethodHold, keeper.Hold{ID: keeper.Node, Names: []string{keeper.FileJournal}}, w.journal.File())
}

func (w *Worker) loadRecords() ([]*record, error) {
	entries, err := os.ReadDir(w.recordDir())
	if err != nil {
		return nil, err
	}
	var records []*record
	for _, entry := range entries {
		id := entry.Name()
		if strings.HasSuffix(id, ".new") {
			_ = os.Remove(w.recordPath(id))
			continue
		}
		r, err := w.loadRecord(id)
		if err != nil {
			w.log.Error("container is lost", "err", err)
			continue
		}
		records = append(records, r)
	}
	return records, nil
}

// adopt goes on with a container that the last worker knew.
func (w *Worker) adopt(ctx context.Context, r *record, t taken) error {
	if r.Pid == 0 { // its create was cut short, and its caller was told so
		t.close()
		w.drop(r.ID, "")
		w.journal.Free(r.LogSlot)
		if err := w.purge(r.ID, r.CgroupsPath, r.Systemd); err != nil {
			return err
		}
		return w.unrecord(r.ID)
	}
	c := newContainer(r.ID)
	c.slot, c.stdinOnce, c.sharesPIDs, c.oom = r.LogSlot, r.StdinOnce, r.SharesPIDs, r.OOM
	for name, f := range t.files {
		c.files[name] = f
	}
	c.pid.Store(int32(r.Pid))
	if err := w.recoverStart(c, r); err != nil {
		return err
	}
	if err := w.copyOutput(c); err != nil {
		return err
	}
	c.made.Store(true)
	w.mu.Lock()
	w.containers[c.id] = c
	w.mu.Unlock()
	// Execs end with their worker: their callers have been told so, and nobody else knows their time limits.
	for _, leaf := range runtime.Leaves(r.Cgroups) {
		go endLeaf(leaf)
	}
	exit, err := w.findExit(ctx, c, t)
	if err != nil {
		return err
	}
	if exit != nil {
		w.end(c, *exit)
	}
	return nil
}

// recoverStart finds out whether a container has been started: the last worker may have been killed amid it.
func (w *Worker) recoverStart(c *container, r *record) error {
	if !r.StartedAt.IsZero() {
		c.started.Store(&r.StartedAt)
		return nil
	}
	if fifo := c.file(fileStart); fifo != nil {
		began, err := runtime.HasStarted(fifo) // what has not happened yet is for a repeat of the start
		if err == nil && began {
			_, err = w.endStart(c)
		}
		if err != nil || began {
			return err
		}
	}
	if at, ok := w.runtime.StartedAt(r.ID, r.Pid); ok {
		c.started.Store(&at)
	}
	return nil
}

// findExit returns how a container ended, nil if it runs, or if its end is about to be recorded. Its next end is the
// keeper's to tell.
func (w *Worker) findExit(ctx context.Context, c *container, t taken) (*conmon.Exit, error) {
	known := true
	if t.pid == 0 { // the last worker was killed before it had told the keeper which process to watch
		var err error
		if known, err = w.nameProcess(ctx, c); err != nil {
			return nil, err
		}
	}
	exit, err := conmon.ReadExit(w.cfg.ExitDir, c.id)
	if err != nil || exit != nil || known || w.runtime.Alive(c.id) {
		return exit, err
	}
	lost, err := conmon.RecordExit(w.cfg.ExitDir, c.id, conmon.UnknownExit(), c.oom)
	if err != nil {
		go func() { w.end(c, w.record(c, lost)) }()
		return nil, nil
	}
	return &lost, nil
}

// nameProcess tells the keeper which process is the container's, for it to watch. It returns whether the keeper knows
// already how that ended.
func (w *Worker) nameProcess(ctx context.Context, c *container) (known bool, err error) {
	var names []string
	if c.file(filePidfd) == nil {
		pidfd, err := child.OpenFD(int(c.pid.Load()))
		switch {
		case err == nil && w.runtime.Alive(c.id): // asked last: the pid may be another process's by now
			c.put(filePidfd, pidfd)
			names = append(names, filePidfd)
		case err == nil:
			pidfd.Close()
		}
	}
	if err := w.sendHold(c, keeper.Hold{Names: names, Found: true}); err != nil {
		return false, err
	}
	_, err = w.link.Call(ctx, keeper.MethodKnows, c.id, &known)
	return known, err
}

// listExits adds those whose exit is all that is left, as after a reboot: the daemon has not asked for them yet.
func (w *Worker) listExits() error {
	ids, err := conmon.ListExits(w.cfg.ExitDir)
	if err != nil {
		return err
	}
	var all []error
	for _, id := range ids {
		if w.find(id) != nil {
			continue
		}
		exit, err := conmon.ReadExit(w.cfg.ExitDir, id)
		if err != nil {
			all = append(all, err)
			continue
		}
		c := newContainer(id)
		c.endOnce.Do(func() {
			c.exit.Store(exit)
			close(c.ended)
		})
		w.mu.Lock()
		w.containers[id] = c
		w.mu.Unlock()
	}
	if err := errors.Join(all...); err != nil {
		w.log.Error("exit records are unreadable", "err", err)
	}
	return nil
}
