// Package process runs the programs of a test by name: each can be killed and started anew, all write logs, and none outlives
// the test.
package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// stopTime is how long a program may take to end.
const stopTime = 15 * time.Second

// Group is programs that run.
type Group struct {
	Dir string // their logs are in Dir/logs

	mu    sync.Mutex
	procs []*process // in the order of their start
}

type process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
}

// New makes the directory.
func New(dir string) (*Group, error) {
	return &Group{Dir: dir}, os.MkdirAll(filepath.Join(dir, "logs"), 0o755)
}

// Run starts a program that lives until Stop, or until it is killed, with its output in logs/NAME.log. env is added to the
// caller's.
func (g *Group) Run(name string, env []string, program string, args ...string) error {
	log, err := os.OpenFile(g.Log(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	p := &process{name: name, cmd: cmd, ended: make(chan struct{})}
	go func() { // Pdeathsig is of the thread, which must live as long as the process
		runtime.LockOSThread()
		started <- cmd.Start()
		_ = cmd.Wait()
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	g.mu.Lock()
	g.procs = append(g.procs, p)
	g.mu.Unlock()
	return nil
}

// Log is the file with a program's output.
func (g *Group) Log(name string) string { return filepath.Join(g.Dir, "logs", name+".log") }

// Tail is the end of a program's output.
func (g *Group) Tail(name string, bytes int) string {
	data, err := os.ReadFile(g.Log(name))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-bytes):])
}

// Kill ends a program at once, and forgets it.
func (g *Group) Kill(name string) error { return g.end(name, syscall.SIGKILL) }

// End asks a program to end and waits for it.
func (g *Group) End(name string) error { return g.end(name, syscall.SIGTERM) }

func (g *Group) end(name string, signal syscall.Signal) error {
	g.mu.Lock()
	var found *process
	for i, p := range g.procs {
		if p.name == name {
			found = p
			g.procs = append(g.procs[:i:i], g.procs[i+1:]...)
			break
		}
	}
	g.mu.Unlock()
	if found == nil {
		return fmt.Errorf("%s does not run", name)
	}
	return found.stop(signal)
}

// PID is a running program's, 0 if it does not run.
func (g *Group) PID(name string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.procs {
		if p.name == name {
			return p.cmd.Process.Pid
		}
	}
	return 0
}

func (p *process) stop(signal syscall.Signal) error {
	_ = p.cmd.Process.Signal(signal)
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTime):
	}
	_ = p.cmd.Process.Kill()
	<-p.ended
	return fmt.Errorf("%s: did not end within %s after %v and was killed", p.name, stopTime, signal)
}

// Stop ends all programs, the last one first. They are killed: their state goes too, and an API server that is asked to end
// waits for its watches.
func (g *Group) Stop() error {
	g.mu.Lock()
	procs := g.procs
	g.procs = nil
	g.mu.Unlock()
	var errs []error
	for i := len(procs) - 1; i >= 0; i-- {
		errs = append(errs, procs[i].stop(syscall.SIGKILL))
	}
	return errors.Join(errs...)
}
