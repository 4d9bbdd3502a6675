package child

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/test/kernel"
)

func TestEventsTellOfThoseFollowedOnly(t *testing.T) {
	kernel.Require(t, kernel.Root)
	events, err := OpenEvents()
	if err != nil {
		t.Fatal(err)
	}
	defer events.Socket.Close()
	other, _ := start(t, "exec sleep 60")
	pid, _ := start(t, "exec sleep 60")
	if err := events.Follow([]int{1, pid}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []int{other, pid} {
		if err := unix.Kill(c, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	told := map[int]conmon.Exit{}
	if err := events.Read(func(pid int, exit conmon.Exit) { told[pid] = exit }); err != nil {
		t.Fatal(err)
	}
	if exit, ok := told[pid]; !ok || len(told) != 1 || exit.Signal != 15 || exit.Code != 143 {
		t.Errorf("told %+v, want that %d ended by signal 15", told, pid)
	}
	Reap(other)
	Reap(pid)
}
