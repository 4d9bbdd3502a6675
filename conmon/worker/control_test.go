package worker

import (
	"os"
	"testing"
	"time"

	"github.com/orlop/orlop/conmon"
)

// A program that ends at once has been started all the same, whatever is seen first of its start and its end.
func TestAwaitStart(t *testing.T) {
	for _, tt := range []struct {
		name          string
		wrote, closed bool
		want          bool
	}{
		{name: "ended after it had gone on", wrote: true, want: true},
		{name: "ended before"},
		{name: "ended after it had gone on, and is released", wrote: true, closed: true, want: true},
		{name: "ended before, and is released", closed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			keep, give, err := pipe(true)
			if err != nil {
				t.Fatal(err)
			}
			defer keep.Close()
			if tt.wrote {
				if _, err := give.Write([]byte("0")); err != nil {
					t.Fatal(err)
				}
			}
			give.Close()
			c := &container{ended: make(chan struct{}), files: map[string]*os.File{fileStart: keep}}
			c.exit.Store(&conmon.Exit{})
			close(c.ended)
			if err := keep.SetReadDeadline(time.Now()); err != nil { // as if its end were noticed first
				t.Fatal(err)
			}
			if tt.closed {
				c.noteStarted()
				keep.Close()
			}
			if got, err := c.awaitStart(); got != tt.want || err != nil {
				t.Errorf("started: %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}
