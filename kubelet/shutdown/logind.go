package shutdown

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// Names on the bus, see org.freedesktop.login1(5) and org.freedesktop.systemd1(5).
const (
	login          = "org.freedesktop.login1"
	loginPath      = dbus.ObjectPath("/org/freedesktop/login1")
	loginManager   = "org.freedesktop.login1.Manager"
	prepare        = loginManager + ".PrepareForShutdown"
	systemd        = "org.freedesktop.systemd1"
	systemdPath    = dbus.ObjectPath("/org/freedesktop/systemd1")
	systemdManager = "org.freedesktop.systemd1.Manager"
	ownerChanged   = "org.freedesktop.DBus.NameOwnerChanged"
)

// DropIns is where systemd-logind looks for pieces of its configuration.
const DropIns = "/etc/systemd/logind.conf.d"

// dropIn is kubelet's file. It is ours as well: were there two, the one with the later name would win over a longer delay in
// the other when a node goes from one kubelet to the other.
const dropIn = "99-kubelet.conf"

// callTime is how long an answer of logind may take.
const callTime = 10 * time.Second

// logind is a connection to the system bus, for what systemd-logind tells and takes there.
type logind struct {
	conn    *dbus.Conn
	cancel  context.CancelFunc
	signals chan *dbus.Signal // in their order; closed with the connection
}

// connect subscribes before anything is asked, so that no change is missed.
func connect(ctx context.Context) (*logind, error) {
	alive, cancel := context.WithCancel(ctx) // the connection closes with it, and what waits for a bus that hangs ends
	late := time.AfterFunc(callTime, cancel)
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(alive), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		late.Stop()
		cancel()
		return nil, fmt.Errorf("system bus: %w", err)
	}
	if !late.Stop() {
		return nil, errLost
	}
	l := &logind{conn: conn, cancel: cancel, signals: make(chan *dbus.Signal, 8)}
	conn.Signal(l.signals)
	if err := l.subscribe(ctx); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *logind) subscribe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := l.conn.AddMatchSignalContext(ctx, dbus.WithMatchSender(login), dbus.WithMatchObjectPath(loginPath),
		dbus.WithMatchInterface(loginManager), dbus.WithMatchMember("PrepareForShutdown"))
	if err == nil {
		err = l.conn.AddMatchSignalContext(ctx, dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
			dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, login))
	}
	if err != nil {
		return fmt.Errorf("system bus: subscribe: %w", err)
	}
	return nil
}

func (l *logind) close() error {
	l.cancel()
	return l.conn.Close()
}

// property reads one of logind's into to. It starts logind where the bus can.
func (l *logind) property(ctx context.Context, name string, to any) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var v dbus.Variant
	err := l.conn.Object(login, loginPath).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, loginManager, name).Store(&v)
	if err == nil {
		err = v.Store(to)
	}
	if err != nil {
		return fmt.Errorf("logind: %s: %w", name, err)
	}
	return nil
}

// preparing is true while the machine is being shut down.
func (l *logind) preparing(ctx context.Context) (yes bool, err error) {
	return yes, l.property(ctx, "PreparingForShutdown", &yes)
}

// delay is for how long a lock can delay a shutdown.
func (l *logind) delay(ctx context.Context) (time.Duration, error) {
	var micros uint64
	err := l.property(ctx, "InhibitDelayMaxUSec", &micros)
	return time.Duration(micros) * time.Microsecond, err
}

// inhibit takes a lock that delays shutdowns until it is closed. It outlives the connection and logind.
func (l *logind) inhibit(ctx context.Context) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var fd dbus.UnixFD
	err := l.conn.Object(login, loginPath).CallWithContext(ctx, loginManager+".Inhibit", 0,
		"shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay").Store(&fd)
	if err != nil {
		return nil, fmt.Errorf("logind: Inhibit: %w", err)
	}
	syscall.CloseOnExec(int(fd)) // a child would hold the lock as well
	return os.NewFile(uintptr(fd), "shutdown lock"), nil
}

// raise has logind allow a longer delay: by a file in directory dropIns, which logind reads again at SIGHUP.
func (l *logind) raise(ctx context.Context, want time.Duration, dropIns string) error {
	if err := writeDropIn(dropIns, want); err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := l.conn.Object(systemd, systemdPath).CallWithContext(call, systemdManager+".KillUnit", 0,
		"systemd-logind.service", "all", int32(syscall.SIGHUP)).Err
	if err != nil {
		return fmt.Errorf("systemd: KillUnit systemd-logind.service: %w", err)
	}
	return l.awaitDelay(ctx, want)
}

func writeDropIn(dir string, want time.Duration) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	seconds := int64((want + time.Second - 1) / time.Second)
	text := fmt.Sprintf("# Made by the kubelet, for its shutdownGracePeriod.\n[Login]\nInhibitDelayMaxSec=%d\n", seconds)
	return os.WriteFile(filepath.Join(dir, dropIn), []byte(text), 0o644)
}

// awaitDelay asks until logind allows the delay: nothing tells that it has read its configuration.
func (l *logind) awaitDelay(ctx context.Context, want time.Duration) error {
	has := time.Duration(0)
	for pause := 50 * time.Millisecond; pause < 4*time.Second; pause *= 2 {
		var err error
		if has, err = l.delay(ctx); err != nil || has >= want {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return fmt.Errorf("logind: InhibitDelayMaxUSec is %s still, after its configuration was changed", has)
}

// errLost ends a connection: it is gone, or another logind has come.
var errLost = errors.New("logind or the system bus went away")

// next is true if a shutdown begins, and false if one was cancelled.
func (l *logind) next(ctx context.Context) (begins bool, err error) {
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case s, ok := <-l.signals:
			switch {
			case !ok || (s.Name == ownerChanged && leaves(s)):
				return false, errLost
			case s.Name == prepare && dbus.Store(s.Body, &begins) == nil:
				return begins, nil
			}
		}
	}
}

// leaves is true if a name lost its owner. That one came is no news: our own question may have started it.
func leaves(s *dbus.Signal) bool {
	var name, before, after string
	return dbus.Store(s.Body, &name, &before, &after) != nil || before != ""
}
