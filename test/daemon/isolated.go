package daemon

import (
	"errors"
	"fmt"
	"os"

	"github.com/orlop/orlop/test/kernel"
)

// dirEnv names the directory of this run's state to the process that does the work.
const dirEnv = "ORLOP_SUITE_DIR"

// Isolated runs a suite, which work does and whose exit code it returns, in a child process with a network namespace of its
// own and a directory for all of its state, and sweeps up after it if it was killed or panicked. A directory of a run that
// failed is kept if $ORLOP_KEEP is set. Without root nothing is run.
func Isolated(suite string, work func(dir string) int) int {
	if os.Geteuid() != 0 {
		fmt.Printf("%s: skipped: needs root\n", suite)
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			return 1
		}
		return 0
	}
	if kernel.InOwnNetwork() {
		if err := kernel.LoopbackUp(); err != nil {
			fmt.Printf("%s: %v\n", suite, err)
			return 1
		}
		return work(os.Getenv(dirEnv))
	}
	dir, err := StateDir()
	if err == nil {
		err = os.Setenv(dirEnv, dir)
	}
	if err != nil {
		fmt.Printf("%s: %v\n", suite, err)
		return 1
	}
	code, err := kernel.OwnNetwork()
	found, sweepErr := Sweep(dir)
	if err = errors.Join(err, sweepErr); err != nil {
		fmt.Printf("%s: %v\n", suite, err)
		return max(code, 1)
	}
	if found {
		fmt.Printf("%s: the suite did not end by itself; what it left was swept up\n", suite)
		code = max(code, 1)
	}
	if code == 0 || os.Getenv("ORLOP_KEEP") == "" {
		_ = os.RemoveAll(dir)
	}
	return code
}

// StateDir makes a directory that can be passed by all users, as the root of a container in a user namespace is one of them.
// Its name is short, for the paths of sockets below it.
func StateDir() (string, error) {
	dir, err := os.MkdirTemp("/var/tmp", "orl-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}
