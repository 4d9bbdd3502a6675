// Package storagetest is what the tests of storage and of image share: places for a store on the real kernel, and a
// look for what a suite left behind. It does not import storage, whose own tests use it.
package storagetest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/orlop/orlop/test/kernel"
)

// Main runs a suite; use it in TestMain. The suite fails if it leaves mounts, descriptors or goroutines of ours.
func Main(m *testing.M) int {
	base, err := os.MkdirTemp("", "orlop-test-")
	if err != nil {
		return complain("temporary directory: %v", err)
	}
	defer os.RemoveAll(base)
	if err := os.Setenv("TMPDIR", base); err != nil { // so that mounts of this suite can be told from others
		return complain("temporary directory: %v", err)
	}
	scope := kernel.Scope{Dirs: []string{base}, Pids: []int{os.Getpid()}}
	before, err := kernel.Take(scope)
	if err != nil {
		return complain("taking stock: %v", err)
	}
	code := kernel.Main(m)
	after, err := kernel.Take(scope)
	if err != nil {
		return complain("taking stock: %v", err)
	}
	// Pipes and the poller of the testing package itself differ; files and sockets must not.
	delete(before, kernel.Processes)
	delete(after, kernel.Processes)
	if diff := leaks(kernel.Compare(before, after)); diff != "" && code == 0 {
		return complain("the suite left:\n%s", diff)
	}
	if stack := ownGoroutines(); stack != "" && code == 0 {
		return complain("the suite left goroutines:\n%s", stack)
	}
	return code
}

func complain(format string, args ...any) int {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	return 1
}

// leaks are the lines of a comparison that say that something is more than before; the Go runtime's own poller is
// opened when it is first needed.
func leaks(diff string) string {
	var out strings.Builder
	for line := range strings.Lines(diff) {
		if strings.Contains(line, ": +") && !strings.Contains(line, "anon_inode:") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// ownGoroutines returns the stacks of goroutines that run our code, except for the caller's.
func ownGoroutines() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var own []string
	for i, stack := range strings.Split(string(buf), "\n\n") {
		if i > 0 && strings.Contains(stack, "github.com/orlop/orlop/") { // the first one is ours
			own = append(own, stack)
		}
	}
	return strings.Join(own, "\n\n")
}

// Dirs are the root of a store, on disk, and its run directory, on a tmpfs as on a real node. Both vanish with the
// test.
func Dirs(t testing.TB) (root, runRoot string) {
	t.Helper()
	kernel.Require(t, kernel.Root)
	run, err := os.MkdirTemp("/dev/shm", "orlop-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	return filepath.Join(t.TempDir(), "root"), run
}
