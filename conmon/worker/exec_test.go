package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/orlop/orlop/conmon"
)

// A panic ends the exec that caused it, and not the worker.
func TestExecPanics(t *testing.T) {
	x := &execution{ // without a worker, and so without a runtime
		record: &record{}, args: conmon.ExecArgs{ExecRequest: conmon.ExecRequest{ID: "one", Args: []string{"true"}}},
		started: make(chan struct{}), killed: make(chan struct{}), done: make(chan struct{}),
	}
	go x.run(t.Context())
	select {
	case <-x.done:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	if x.err == nil || !strings.Contains(x.err.Error(), "panic") {
		t.Errorf("%v", x.err)
	}
	if len(spawns) != 0 {
		t.Errorf("%d slots are taken", len(spawns))
	}
}
