package worker

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is handed over stays open, although its container ends at this moment.
func TestHandOver(t *testing.T) {
	c := newContainer("one")
	for _, name := range []string{fileStdin, fileStdout, filePidfd} {
		keep, give, err := pipe(true)
		if err != nil {
			t.Fatal(err)
		}
		give.Close()
		c.put(name, keep)
	}
	h := c.handOver()
	if len(h.Files) != 3 {
		t.Errorf("handed over: %v", h.Files)
	}
	released := make(chan struct{})
	go func() {
		c.release()
		close(released)
	}()
	select {
	case <-released:
		t.Error("closed after it was handed over")
	case <-time.After(100 * time.Millisecond):
	}
	for name, fd := range h.Files {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	c.mu.Unlock()
	<-released
}
