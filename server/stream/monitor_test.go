package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/store"
)

// localMonitor is a [Monitor] whose containers are processes of this machine: execs run beside the tests, and Attach
// knows one container, which a test makes.
type localMonitor struct {
	mu        sync.Mutex // guards what follows
	container *localContainer
	sizes     [][2]uint16
	running   map[int]bool // process groups of execs
}

// localContainer holds the ends of what a container has of its streams.
type localContainer struct {
	stdin          *os.File // written by attached clients
	stdout, stderr *os.File // read by attached clients
	terminal, once bool
}

func (m *localMonitor) Exec(ctx context.Context, r conmon.ExecRequest, stdio conmon.Stdio) (conmon.ExecResult, error) {
	cmd := exec.Command(r.Args[0], r.Args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if stdio.Console != nil {
		slave, err := giveTerminal(stdio.Console)
		if err != nil {
			return conmon.ExecResult{}, err
		}
		defer slave.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr.Setctty = true
	} else {
		if stdio.Stdin != nil { // an interface with a nil pointer in it would not be nil
			cmd.Stdin = stdio.Stdin
		}
		if stdio.Stdout != nil {
			cmd.Stdout = stdio.Stdout
		}
		if stdio.Stderr != nil {
			cmd.Stderr = stdio.Stderr
		}
	}
	if err := cmd.Start(); err != nil {
		return conmon.ExecResult{}, err
	}
	m.note(cmd.Process.Pid, true)
	defer m.note(cmd.Process.Pid, false)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var expired <-chan time.Time
	if r.Timeout > 0 {
		expired = time.After(r.Timeout)
	}
	select {
	case <-ended:
		return conmon.ExecResult{Code: cmd.ProcessState.ExitCode()}, nil
	case <-expired:
		return conmon.ExecResult{Code: -1, TimedOut: true}, kill(cmd.Process.Pid, ended)
	case <-ctx.Done():
		return conmon.ExecResult{}, errors.Join(ctx.Err(), kill(cmd.Process.Pid, ended))
	}
}

func kill(pid int, ended <-chan error) error {
	err := unix.Kill(-pid, unix.SIGKILL)
	<-ended
	return err
}

func (m *localMonitor) note(pid int, runs bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running == nil {
		m.running = map[int]bool{}
	}
	if runs {
		m.running[pid] = true
	} else {
		delete(m.running, pid)
	}
}

func (m *localMonitor) execs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.running)
}

// openTerminal makes a pseudoterminal.
func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		master.Close()
	}
	return master, slave, err
}

// giveTerminal makes a terminal and sends its master as libcontainer does.
func giveTerminal(socket *os.File) (slave *os.File, err error) {
	master, slave, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer master.Close()
	return slave, unix.Sendmsg(int(socket.Fd()), []byte(master.Name()), unix.UnixRights(int(master.Fd())), nil, 0)
}

func (m *localMonitor) Attach(context.Context, string) (*conmon.Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.container
	a := &conmon.Attachment{Terminal: c.terminal, StdinOnce: c.once}
	for _, slot := range []struct {
		from *os.File
		to   **os.File
	}{{c.stdin, &a.Stdin}, {c.stdout, &a.Stdout}, {c.stderr, &a.Stderr}} {
		if slot.from == nil {
			continue
		}
		dup, err := nonblocking(slot.from)
		if err != nil {
			return nil, err
		}
		*slot.to = dup
	}
	return a, nil
}

func (m *localMonitor) CloseStdin(context.Context, string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.container.stdin == nil {
		return conmon.ErrNotFound
	}
	defer func() { m.container.stdin = nil }()
	return m.container.stdin.Close()
}

func (m *localMonitor) Resize(_ context.Context, _ string, width, height uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sizes = append(m.sizes, [2]uint16{width, height})
	return nil
}

// startContainer runs a shell script as the container of Attach; end waits for it.
func (m *localMonitor) startContainer(t *testing.T, script string, once bool) (end func() string) {
	t.Helper()
	in, out, errOut := osPipe(t), osPipe(t), osPipe(t)
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in[0], out[1], errOut[1]
	result := osPipe(t)
	cmd.ExtraFiles = []*os.File{result[1]} // descriptor 3: what the script says to the test and not to its clients
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{in[0], out[1], errOut[1], result[1]} {
		f.Close()
	}
	m.mu.Lock()
	m.container = &localContainer{stdin: in[1], stdout: out[0], stderr: errOut[0], once: once}
	m.mu.Unlock()
	return sync.OnceValue(func() string {
		said, err := io.ReadAll(result[0])
		if err := errors.Join(err, cmd.Wait()); err != nil {
			t.Error(err)
		}
		return string(said)
	})
}

func osPipe(t *testing.T) [2]*os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return [2]*os.File{r, w}
}

// allRunning are [Subjects] that know every container and pod.
type allRunning struct{ netns string }

func (a allRunning) RunningContainer(id string) (string, error) {
	if id == "" {
		return "", fmt.Errorf("%w: the ID is empty", store.ErrInvalid)
	}
	return id, nil
}

func (a allRunning) PodNetNS(id string) (string, error) {
	if id == "gone" {
		return "", store.ErrNotFound
	}
	return a.netns, nil
}

func newServer(t testing.TB, m Monitor, subjects Subjects) *Server {
	t.Helper()
	s, err := New(Config{Address: "127.0.0.1:0", IdleTimeout: time.Minute}, m, subjects, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
