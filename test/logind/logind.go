// Package logind is a message bus of a test's own, with a small systemd-logind on it that does what it says: it gives out
// locks, tells that the machine is about to be shut down, and waits for the locks as long as its delay lasts. What it does
// after that is nothing. Programs find the bus by [Logind.Env].
package logind

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/test/process"
)

const (
	login   = "org.freedesktop.login1"
	manager = "org.freedesktop.login1.Manager"
	path    = dbus.ObjectPath("/org/freedesktop/login1")
	systemd = "org.freedesktop.systemd1"
)

const busConfig = `<busconfig>
  <type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
`

// Options of a logind.
type Options struct {
	Dir   string        // short, for the path of a socket
	Delay time.Duration // InhibitDelayMaxSec of its main configuration
}

// Logind is one that is on its bus, unless it was taken away.
type Logind struct {
	Options
	group *process.Group

	mu        sync.Mutex
	conn      *dbus.Conn // nil while it is away
	props     *prop.Properties
	preparing bool
	delay     time.Duration
	locks     []*lock
	asked     []string // "WHAT by WHO: MODE" of all locks
}

// lock is a pipe whose other end somebody holds.
type lock struct {
	read, write *os.File // write is nil once it can be closed here
	since       time.Time
}

// sendTime is how long a lock's end may be on its way: the library does not tell when it was sent, and may be closed here.
const sendTime = 200 * time.Millisecond

// New starts a bus with a logind.
func New(o Options) (*Logind, error) {
	l := &Logind{Options: o, delay: o.Delay}
	var err error
	if l.group, err = process.New(o.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.DropIns(), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(l.config(), fmt.Appendf(nil, busConfig, l.socket()), 0o644); err != nil {
		return nil, err
	}
	return l, errors.Join(l.StartBus(), l.Come())
}

// DropIns is the directory of configuration that it reads.
func (l *Logind) DropIns() string { return filepath.Join(l.Dir, "logind.conf.d") }

func (l *Logind) socket() string { return filepath.Join(l.Dir, "bus") }

func (l *Logind) config() string { return filepath.Join(l.Dir, "bus.conf") }

// Env is the variable of an environment by which programs find the bus instead of the machine's own.
func (l *Logind) Env() (name, value string) {
	return "DBUS_SYSTEM_BUS_ADDRESS", "unix:path=" + l.socket()
}

// StartBus starts the bus, and waits until it answers.
func (l *Logind) StartBus() error {
	if err := l.group.Run("dbus-daemon", nil, "dbus-daemon", "--nofork", "--nopidfile", "--config-file="+l.config()); err != nil {
		return err
	}
	var last error
	for range 200 {
		conn, err := dbus.Connect("unix:path=" + l.socket())
		if err == nil {
			return conn.Close()
		}
		last = err
		time.Sleep(25 * time.Millisecond)
	}
	return fmt.Errorf("bus: %w; the end of its log: %s", last, l.group.Tail("dbus-daemon", 2000))
}

// StopBus kills the bus, and with it all connections.
func (l *Logind) StopBus() error {
	err := l.Go()
	return errors.Join(err, l.group.Kill("dbus-daemon"))
}

// Come puts logind, and systemd as far as it is needed, on the bus. Locks are those that it had.
func (l *Logind) Come() error {
	conn, err := dbus.Connect("unix:path=" + l.socket())
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	l.props, err = prop.Export(conn, path, prop.Map{manager: {
		"InhibitDelayMaxUSec":  {Value: uint64(l.delay / time.Microsecond)},
		"PreparingForShutdown": {Value: l.preparing},
	}})
	err = errors.Join(err, conn.Export(login1{l}, path, manager), conn.Export(systemd1{l}, "/org/freedesktop/systemd1", systemd+".Manager"))
	for _, name := range []string{login, systemd} {
		_, nameErr := conn.RequestName(name, dbus.NameFlagDoNotQueue)
		err = errors.Join(err, nameErr)
	}
	return err
}

// Go takes logind from the bus.
func (l *Logind) Go() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return nil
	}
	err := l.conn.Close()
	l.conn = nil
	return err
}

// login1 is what callers see of logind.
type login1 struct{ l *Logind }

// Inhibit gives out a lock.
func (s login1) Inhibit(what, who, _, mode string) (dbus.UnixFD, *dbus.Error) {
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.preparing {
		return 0, dbus.NewError(login+".OperationInProgress", []any{"The operation inhibition has been requested for is already running"})
	}
	read, write, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.locks = append(l.locks, &lock{read, write, time.Now()})
	l.asked = append(l.asked, fmt.Sprintf("%s by %s: %s", what, who, mode))
	return dbus.UnixFD(write.Fd()), nil
}

// systemd1 is what callers see of systemd.
type systemd1 struct{ l *Logind }

// KillUnit has logind read its configuration again.
func (s systemd1) KillUnit(unit, who string, signal int32) *dbus.Error {
	if unit != "systemd-logind.service" || who != "all" || signal != int32(unix.SIGHUP) {
		return dbus.MakeFailedError(fmt.Errorf("KillUnit %s %s %d", unit, who, signal))
	}
	if err := s.l.reload(); err != nil {
		return dbus.MakeFailedError(err)
	}
	return nil
}

func (l *Logind) reload() error {
	files, err := filepath.Glob(filepath.Join(l.DropIns(), "*.conf"))
	if err != nil {
		return err
	}
	delay := l.Delay
	for _, f := range files { // the last one counts
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "InhibitDelayMaxSec="); ok {
				seconds, err := strconv.Atoi(value)
				if err != nil {
					return err
				}
				delay = time.Duration(seconds) * time.Second
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = delay
	l.props.SetMust(manager, "InhibitDelayMaxUSec", uint64(delay/time.Microsecond))
	return nil
}

// MaxDelay is for how long a shutdown waits for locks now.
func (l *Logind) MaxDelay() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delay
}

// Asked are the locks that were ever asked for, each as "WHAT by WHO: MODE".
func (l *Logind) Asked() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.asked)
}

// Held is how many locks are held.
func (l *Logind) Held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locks = slices.DeleteFunc(l.locks, (*lock).gone)
	return len(l.locks)
}

// gone is true once nobody has the other end.
func (k *lock) gone() bool {
	if k.write != nil && time.Since(k.since) < sendTime {
		return false
	}
	if k.write != nil {
		_ = k.write.Close()
		k.write = nil
	}
	fds := []unix.PollFd{{Fd: int32(k.read.Fd())}}
	if _, err := unix.Poll(fds, 0); err != nil || fds[0].Revents&unix.POLLHUP == 0 {
		return false
	}
	_ = k.read.Close()
	return true
}

// Prepare tells that the machine is about to be shut down, or no longer is.
func (l *Logind) Prepare(begins bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.preparing = begins
	if l.conn == nil {
		return nil
	}
	l.props.SetMust(manager, "PreparingForShutdown", begins)
	return l.conn.Emit(path, manager+".PrepareForShutdown", begins)
}

// Shutdown tells that the machine is about to be shut down, and waits for the locks, which is how long it took; an error if
// they were held for longer than it waits.
func (l *Logind) Shutdown() (time.Duration, error) {
	begin := time.Now()
	if err := l.Prepare(true); err != nil {
		return 0, err
	}
	for l.Held() > 0 {
		if time.Since(begin) > l.MaxDelay() {
			return time.Since(begin), fmt.Errorf("a lock is still held after %s", l.MaxDelay())
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begin), nil
}

// Close ends the bus.
func (l *Logind) Close() error {
	err := errors.Join(l.Go(), l.group.Stop())
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.locks {
		_ = k.read.Close()
		if k.write != nil {
			_ = k.write.Close()
		}
	}
	l.locks = nil
	return err
}
