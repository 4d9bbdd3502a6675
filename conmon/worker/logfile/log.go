// Package logfile writes containers' output to log files in the CRI format, and loses and repeats nothing when the
// process that does so is killed.
//
// Output of a pipe takes these steps, of which each can be the last:
//
//	container's pipe ─1 splice─▶ spool pipe ─2 tee, read─▶ memory ─4 write─▶ log
//	                                 └──────5 consume──▶ gone
//	                   3 announce the turn in the journal, 6 clear it
//
// Both pipes, the log and the journal are held by the keeper too. Nobody but the worker writes to the spool, so after
// a kill the number of bytes in it says whether 5 happened, and the size of the log says how much of 4 did.
package logfile

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Log is one container's log file, shared by its streams.
type Log struct {
	slot *Slot

	mu   sync.Mutex // guards what follows, over a whole turn: a file has one writer at a time
	file *os.File
	// open counts the streams whose last entry has the tag P: the line goes on.
	open   [2]bool
	closed sync.Cond // the last line of a stream was finished
}

// reopenPatience is how long a reopen waits for the rest of a line that was longer than maxLine.
const reopenPatience = 200 * time.Millisecond

// Open opens a log file for appending, and makes it if it is missing.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return f, nil
}

// New takes over the file. The journal's slot must be this log's alone.
func New(file *os.File, j *Journal, slot int) *Log {
	l := &Log{slot: j.slot(slot), file: file}
	l.closed.L = &l.mu
	return l
}

// Reopen goes on in file, from the beginning of a line. held is called when no turn is under way, before anything is
// written to file: the keeper must know of it by then.
func (l *Log) Reopen(file *os.File, held func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		file.Close()
		return os.ErrClosed
	}
	deadline := time.Now().Add(reopenPatience)
	wake := time.AfterFunc(reopenPatience, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.closed.Broadcast()
	})
	defer wake.Stop()
	for (l.open[Stdout] || l.open[Stderr]) && time.Now().Before(deadline) {
		l.closed.Wait()
	}
	if err := held(); err != nil {
		file.Close()
		return err
	}
	l.file.Close()
	l.file = file
	return nil
}

// Close closes the file. Output that comes later is dropped.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}

// appendLocked writes whole entries or nothing: a disk that fills up must not leave half a line.
func (l *Log) appendLocked(entries []byte) error {
	if l.file == nil {
		return nil
	}
	n, err := l.file.Write(entries)
	if err != nil && n > 0 {
		if info, serr := l.file.Stat(); serr == nil {
			_ = l.file.Truncate(info.Size() - int64(n))
		}
	}
	return err
}

func (l *Log) sizeLocked() int64 {
	if l.file == nil {
		return 0
	}
	info, err := l.file.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

func (l *Log) markLocked(s Stream, partial bool) {
	l.open[s] = partial
	if !partial {
		l.closed.Broadcast()
	}
}
