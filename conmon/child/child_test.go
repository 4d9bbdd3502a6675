package child

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/test/kernel"
)

// start runs a shell that nobody waits for but the test.
func start(t *testing.T, script string) (pid int, pidfd *os.File) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := OpenFD(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pidfd.Close() })
	return cmd.Process.Pid, pidfd
}

func TestPeekLeavesTheZombie(t *testing.T) {
	for _, tt := range []struct {
		script       string
		code, signal int
	}{{"exit 0", 0, 0}, {"exit 42", 42, 0}, {"kill -9 $$", 137, 9}, {"kill -15 $$", 143, 15}} {
		pid, pidfd := start(t, tt.script)
		if err := Ended(pidfd); err != nil {
			t.Fatal(err)
		}
		foreign, err := OpenForeign(pidfd, pid)
		if err != nil {
			t.Fatal(err)
		}
		defer foreign.close()
		if exit := foreign.exit(); exit.Code != tt.code || exit.Signal != tt.signal || exit.Unknown {
			t.Errorf("%s: exit of the zombie: %+v", tt.script, exit)
		}
		for range 2 {
			got, exit, err := PeekFD(int(pidfd.Fd()))
			if err != nil || got != pid || exit.Code != tt.code || exit.Signal != tt.signal {
				t.Errorf("%s: %d %+v, %v; want pid %d", tt.script, got, exit, err, pid)
			}
		}
		Reap(pid)
		if _, _, err := PeekFD(int(pidfd.Fd())); err != unix.ECHILD {
			t.Errorf("%s: after Reap: %v", tt.script, err)
		}
		exit := foreign.exit() // the pidfd keeps it since Linux 6.15
		if !exit.Unknown && exit.Code != tt.code || exit.Unknown && kernel.Has(kernel.Version(6, 15)) {
			t.Errorf("%s: exit of what was reaped: %+v", tt.script, exit)
		}
	}
}

func TestZombies(t *testing.T) {
	other, alive := start(t, "exec sleep 1000")
	pid, pidfd := start(t, "exit 0")
	if err := Ended(pidfd); err != nil {
		t.Fatal(err)
	}
	zombies, err := Zombies()
	if err != nil || len(zombies) != 1 || zombies[pid] == "" {
		t.Errorf("zombies: %v, %v; want %d alone", zombies, err, pid)
	}
	Reap(pid)
	if zombies, err := Zombies(); err != nil || len(zombies) > 0 {
		t.Errorf("after Reap: %v, %v", zombies, err)
	}
	if err := unix.PidfdSendSignal(int(alive.Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := Ended(alive); err != nil {
		t.Error(err)
	}
	Reap(other)
}

// Processes that end together, and in another order than they are watched, are each told with their own code.
func TestWatch(t *testing.T) {
	var all []Foreign
	for i := range 20 {
		pid, pidfd := start(t, fmt.Sprintf("sleep 0.%d; exit %d", 9-i%10, i))
		t.Cleanup(func() { Reap(pid) })
		f, err := OpenForeign(pidfd, pid)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	codes := map[int]int{}
	done := make(chan error)
	go func() { done <- Watch(all, func(i int, exit conmon.Exit) { codes[i] = exit.Code }) }()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if code, ok := codes[i]; !ok || code != i {
			t.Errorf("process %d: told %v, code %d", i, ok, code)
		}
	}
}

func TestParent(t *testing.T) {
	pid, pidfd := start(t, "exit 0")
	if err := Ended(pidfd); err != nil {
		t.Fatal(err)
	}
	if parent, err := Parent(pid); err != nil || parent != os.Getpid() {
		t.Errorf("%d, %v; want %d", parent, err, os.Getpid())
	}
	Reap(pid)
	if _, err := Parent(pid); err == nil {
		t.Error("a process that is gone has a parent")
	}
}
