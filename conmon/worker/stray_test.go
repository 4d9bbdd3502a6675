package worker

import (
	"log/slog"
	"maps"
	"os/exec"
	"slices"
	"testing"

	"github.com/orlop/orlop/conmon/child"
)

// Of the children that have ended, those are reaped that are still there and are no container's own.
func TestReapStrays(t *testing.T) {
	run := func() int {
		cmd := exec.Command("/bin/true")
		if err := cmd.Start(); err != nil { // and nobody waits for it
			t.Fatal(err)
		}
		pidfd, err := child.OpenFD(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		defer pidfd.Close()
		if err := child.Ended(pidfd); err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid
	}
	stray, kept, late := run(), run(), run()
	seen, err := child.Zombies()
	if err != nil || len(seen) != 3 {
		t.Fatalf("zombies: %v, %v", seen, err)
	}
	seen[late] = "0" // as of a process that had this pid before
	c := newContainer("kept")
	c.pid.Store(int32(kept))
	w := &Worker{log: slog.New(slog.DiscardHandler), containers: map[string]*container{c.id: c}}
	w.reapStrays(seen)
	left, err := child.Zombies()
	if err != nil || left[stray] != "" || left[kept] == "" || left[late] == "" {
		t.Errorf("left of %d, %d and %d: %v, %v", stray, kept, late, slices.Collect(maps.Keys(left)), err)
	}
	child.Reap(kept)
	child.Reap(late)
}
