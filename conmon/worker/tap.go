package worker

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/orlop/orlop/conmon/worker/logfile"
)

// tap gives a container's output to those who are attached.
type tap struct {
	count atomic.Int32

	mu      sync.Mutex // guards what follows
	closed  bool
	clients map[*client]struct{}
}

// client has the write ends of pipes whose read ends the daemon has.
type client struct{ out [2]*os.File } // by stream; stderr may be nil

// patience is how long a stream waits for a client that does not read, before it is disconnected.
const patience = 10 * time.Second

func (t *tap) add(c *client) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	if t.clients == nil {
		t.clients = map[*client]struct{}{}
	}
	t.clients[c] = struct{}{}
	t.count.Add(1)
	return true
}

func (t *tap) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for c := range t.clients {
		t.removeLocked(c)
	}
}

func (t *tap) removeLocked(c *client) {
	if _, ok := t.clients[c]; !ok {
		return
	}
	delete(t.clients, c)
	t.count.Add(-1)
	c.close()
}

func (c *client) close() {
	for _, f := range c.out {
		if f != nil {
			f.Close()
		}
	}
}

func (t *tap) stream(i int) logfile.Tap { return tapStream{t, i} }

// Open and Write are for a terminal, which has one stream.
func (t *tap) Open() bool     { return t.count.Load() > 0 }
func (t *tap) Write(p []byte) { tapStream{t, 0}.Write(p) }

type tapStream struct {
	*tap
	index int
}

func (s tapStream) Write(p []byte) {
	s.mu.Lock()
	clients := make([]*client, 0, len(s.clients))
	for c := range s.clients {
		clients = append(clients, c)
	}
	s.mu.Unlock()
	for _, c := range clients {
		f := c.out[s.index]
		if f == nil {
			continue
		}
		_ = f.SetWriteDeadline(time.Now().Add(patience))
		if _, err := f.Write(p); err != nil {
			s.mu.Lock()
			s.removeLocked(c)
			s.mu.Unlock()
		}
	}
}
