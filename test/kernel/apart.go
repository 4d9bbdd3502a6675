package kernel

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// The main thread stays where the process is: what /proc/net and /proc/self tell is of it, and Go does not end it with a
// goroutine that was locked to it.
func init() { runtime.LockOSThread() }

// Apart runs f on a thread in a new network namespace, which ends with it; what f starts is there as well.
func Apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread dies
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
