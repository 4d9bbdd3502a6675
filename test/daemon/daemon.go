// Package daemon runs `orlop serve` with its monitor for a test, all state below one directory, on a network of its
// own; it kills each of the processes on request, simulates a reboot, and at the end leaves nothing.
//
// A suite that uses it should run in a network namespace of its own, see kernel.OwnNetwork: the pods' bridge and the
// firewall rules of their port mappings are made there.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

// readyTime bounds how long a start may take until the server answers.
const readyTime = 60 * time.Second

// Options of a daemon.
type Options struct {
	// Dir holds all of its state. It must be short, for the socket's path, and on a file system that overlayfs takes.
	Dir string
	// Subnet is the third number of the pods' IPv4 addresses, 10.203.Subnet.0/24, and names the bridge: two daemons in
	// one network namespace need two.
	Subnet int
	// Settings are more lines of configuration by table ("image": "max_unpacked_bytes = 1\n").
	Settings map[string]string
}

// Daemon is one that runs, or is between two runs.
type Daemon struct {
	Options
	// Client stays valid over restarts.
	Client *criclient.Client
	// CertsDir is where registries' certificates are looked for, RegistriesDir holds drop-ins of registries.conf, and
	// Policy is the signature policy; all are read when an image is pulled.
	CertsDir, RegistriesDir, Policy string
	// CNIDir holds network configurations and CNIBin the plugins that tests write.
	CNIDir, CNIBin string

	bins Binaries

	mu  sync.Mutex
	cmd *exec.Cmd
	// ended is closed when cmd has been waited for.
	ended chan struct{}
}

// New prepares a daemon's directory. It builds what is missing of the binaries, which may take minutes.
func New(o Options) (*Daemon, error) {
	bins, err := Build()
	if err != nil {
		return nil, err
	}
	sub := func(name string) string { return filepath.Join(o.Dir, name) }
	d := &Daemon{
		Options: o, bins: bins, CertsDir: sub("certs.d"), RegistriesDir: sub("registries.conf.d"), Policy: sub("policy.json"),
		CNIDir: sub("net.d"), CNIBin: sub("cni-bin"),
	}
	for _, dir := range []string{d.CertsDir, d.RegistriesDir, d.CNIDir, d.CNIBin, sub("logs"), sub("run")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	files := map[string]string{
		sub("orlop.toml"): d.config(), sub("registries.conf"): "short-name-mode = \"disabled\"\n",
		d.Policy: acceptAll, filepath.Join(d.CNIDir, "10-pods.conflist"): d.network(),
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	d.Client, err = criclient.Dial("unix://" + d.Socket())
	if err != nil {
		return nil, err
	}
	d.Client.LogRoot = sub("logs")
	d.Client.CgroupParent = d.cgroup()
	return d, nil
}

// Socket is the path of the CRI server.
func (d *Daemon) Socket() string { return filepath.Join(d.Dir, "run/orlop.sock") }

// LogFile is what the daemon logs to.
func (d *Daemon) LogFile() string { return filepath.Join(d.Dir, "serve.log") }

// Start the daemon and wait until it answers.
func (d *Daemon) Start(ctx context.Context) error {
	if err := d.launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, kernel.Patient(readyTime))
	defer cancel()
	d.mu.Lock()
	ended := d.ended
	d.mu.Unlock()
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	if _, err := d.Client.WaitReady(ctx); err != nil {
		return fmt.Errorf("orlop serve: %w; the end of its log:\n%s", err, d.LogTail())
	}
	return nil
}

// launch starts the process.
func (d *Daemon) launch() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil {
		return errors.New("orlop serve runs already")
	}
	log, err := os.OpenFile(d.LogFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(d.bins.Orlop, "serve", "--config", filepath.Join(d.Dir, "orlop.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the suite, which then ends us
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	d.cmd, d.ended = cmd, ended
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		d.mu.Lock()
		d.cmd = nil
		d.mu.Unlock()
		close(ended)
	}()
	return nil
}

// LogTail is the end of the daemon's log.
func (d *Daemon) LogTail() string {
	const size = 4 << 10
	raw, _ := os.ReadFile(d.LogFile())
	if len(raw) > size {
		raw = raw[len(raw)-size:]
	}
	return string(raw)
}

// Stop ends the daemon as an administrator would; pods run on.
func (d *Daemon) Stop() error { return d.end(syscall.SIGTERM) }

// end sends a signal to the daemon, unless it is not running, and waits for its end.
func (d *Daemon) end(sig syscall.Signal) error {
	d.mu.Lock()
	cmd, ended := d.cmd, d.ended
	d.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-time.After(kernel.Patient(30 * time.Second)):
		_ = cmd.Process.Signal(syscall.SIGQUIT) // it writes its stacks to the log
		<-ended
		return fmt.Errorf("orlop serve did not end within 30 s of %v; the end of its log:\n%s", sig, d.LogTail())
	}
}

// Restart ends the daemon by sig and starts it again.
func (d *Daemon) Restart(ctx context.Context, sig syscall.Signal) error {
	if err := d.end(sig); err != nil {
		return err
	}
	return d.Start(ctx)
}

// Scope is all that the daemon could leave behind, for kernel.Take.
func (d *Daemon) Scope() kernel.Scope {
	return kernel.Scope{
		Dirs: []string{d.Dir}, Cgroups: d.cgroupDirs(), Leases: []string{filepath.Join(d.Dir, "leases")},
		Storage: []string{filepath.Join(d.Dir, "root/storage")}, Network: true, Pids: d.Pids(),
	}
}

// Close ends everything and removes the directory, also if pods are left.
func (d *Daemon) Close() error {
	var errs []error
	if d.cmd != nil {
		ctx, cancel := context.WithTimeout(context.Background(), kernel.Patient(time.Minute))
		defer cancel()
		errs = append(errs, d.removePods(ctx), d.Stop())
	}
	errs = append(errs, d.Client.Close(), d.killAll(), d.unmountAll(), d.removeCgroups(), d.removeBridge())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(d.Dir)
}

// removeBridge removes what the bridge plugin makes once and leaves.
func (d *Daemon) removeBridge() error { return RemoveLink(d.bridge()) }

// RemoveLink removes a network device if it is there.
func RemoveLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}
