package logfile

import (
	"log/slog"
	"os"
	"time"
)

// Console moves a terminal's output to a log. A terminal can't be peeked at: what was read last is lost if this
// process is killed.
type Console struct {
	log    *Log
	master *os.File
	tap    Tap
	slog   *slog.Logger
}

// NewConsole does not read yet. l may be nil.
func NewConsole(l *Log, master *os.File, tap Tap, log *slog.Logger) *Console {
	return &Console{l, master, tap, log}
}

// Run copies until the last process has closed the terminal (then reading fails with EIO) or the master is closed.
func (c *Console) Run() {
	buf := make([]byte, 4<<10)
	var line, out []byte
	for {
		n, err := c.master.Read(buf)
		if n > 0 && c.tap.Open() {
			c.tap.Write(buf[:n])
		}
		if c.log != nil {
			line = append(line, buf[:n]...)
			var used int
			var partial bool
			out, used, partial = format(out[:0], line, Stdout, time.Now(), err != nil)
			line = append(line[:0], line[used:]...)
			c.append(out, partial)
		}
		if err != nil {
			return
		}
	}
}

func (c *Console) append(entries []byte, partial bool) {
	if len(entries) == 0 {
		return
	}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if err := c.log.appendLocked(entries); err != nil {
		c.slog.Error("log can't be written: output is dropped", "err", err)
	}
	c.log.markLocked(Stdout, partial)
}
