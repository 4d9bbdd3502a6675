package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/internal/config"
)

// errRuns means that another process works on the same directories.
var errRuns = errors.New("another orlop runs on it")

// instance holds the directories of one daemon against a second one. The kernel lets go of it when the process ends,
// in whatever way.
type instance struct{ locks []*os.File }

// lockInstance makes the directories of c and locks them: root and run_root each, because two daemons that share
// either would take each other's pods for leftovers.
func lockInstance(c config.Config) (*instance, error) {
	in := new(instance)
	for _, dir := range []string{c.Root, c.RunRoot} {
		f, err := lockDir(dir)
		if err != nil {
			in.release()
			return nil, err
		}
		in.locks = append(in.locks, f)
	}
	return in, nil
}

func (in *instance) release() {
	for _, f := range in.locks {
		f.Close()
	}
}

// lockDir makes dir passable but not readable by others: a container in a user namespace must reach its root
// filesystem below it.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, "orlop.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w (pid %s); stop it, or set another root and run_root", dir, errRuns, holder(f))
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	// The number is for the message above only; the lock is what counts.
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// lockTime is how long the lock of a daemon that was killed may outlive it: in a child that it was just forking.
const lockTime = 2 * time.Second

// flock waits only for a holder that is dead.
func flock(f *os.File) error {
	for end := time.Now().Add(lockTime); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return err
		}
		if pid, perr := strconv.Atoi(holder(f)); perr == nil && unix.Kill(pid, 0) == nil {
			return err
		}
		<-time.After(10 * time.Millisecond)
	}
}

func holder(f *os.File) string {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0) // an empty or unreadable file is an unknown holder
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return pid
	}
	return "unknown"
}
