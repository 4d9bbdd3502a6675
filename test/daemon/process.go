package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

// Role is one of the processes that a node runs once.
type Role string

// The roles, by the word in the process's arguments.
const (
	Serve  Role = "serve"
	Keeper Role = "keeper"
	Worker Role = "worker"
)

// Roles are all of them.
var Roles = []Role{Serve, Keeper, Worker}

// Pid of the process that has the role, 0 if there is none now.
func (d *Daemon) Pid(role Role) int {
	found, err := kernel.Find(d.Dir, string(role))
	if err != nil {
		return 0
	}
	for _, p := range found {
		if p.State != "Z" && len(p.Args) > 1 && p.Args[1] == string(role) {
			return p.Pid
		}
	}
	return 0
}

// Pids of all roles that run now.
func (d *Daemon) Pids() []int {
	var pids []int
	for _, role := range Roles {
		if pid := d.Pid(role); pid != 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Kill sends SIGKILL to the process that has the role. The daemon is waited for; it is not started again.
func (d *Daemon) Kill(role Role) error {
	if role == Serve {
		return d.end(syscall.SIGKILL)
	}
	pid := d.Pid(role)
	if pid == 0 {
		return fmt.Errorf("no process is the %s", role)
	}
	return unix.Kill(pid, unix.SIGKILL)
}

// removePods removes all pods through CRI.
func (d *Daemon) removePods(ctx context.Context) error {
	all, err := d.Client.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range all.Items {
		_, err := d.Client.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id})
		errs = append(errs, err)
		_, err = d.Client.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// killAll ends every process of this daemon's: the monitor, whose halves replace each other, and then the containers,
// which are in the daemon's cgroups.
func (d *Daemon) killAll() error {
	kill := func() bool {
		pids := d.members()
		for _, word := range []Role{Serve, Keeper, Worker, "init"} {
			found, err := kernel.Find(d.Dir, string(word))
			if err != nil {
				return false
			}
			for _, p := range found {
				if p.State != "Z" {
					pids = append(pids, p.Pid)
				}
			}
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // gone meanwhile
		}
		return len(pids) == 0
	}
	if err := criclient.Wait(context.Background(), 30*time.Second, kill); err != nil {
		return fmt.Errorf("processes of %s are still there: %w", d.Dir, err)
	}
	return nil
}

// members are the processes in the daemon's cgroups.
func (d *Daemon) members() []int {
	var pids []int
	d.eachCgroup(func(dir string) {
		raw, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(raw)) {
			var pid int
			if _, err := fmt.Sscan(field, &pid); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	})
	slices.Sort(pids)
	return slices.Compact(pids)
}

// eachCgroup visits children before their parents.
func (d *Daemon) eachCgroup(visit func(dir string)) {
	roots, _ := kernel.CgroupRoots() // /proc is there
	for _, root := range roots {
		for _, top := range d.cgroupDirs() {
			var dirs []string
			_ = filepath.WalkDir(filepath.Join(root, top), func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					dirs = append(dirs, path)
				}
				return nil // it vanished meanwhile
			})
			for _, dir := range slices.Backward(dirs) {
				visit(dir)
			}
		}
	}
}

func (d *Daemon) removeCgroups() error {
	var left []string
	err := criclient.Wait(context.Background(), 10*time.Second, func() bool {
		left = nil
		d.eachCgroup(func(dir string) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				left = append(left, fmt.Sprintf("%s: %v", dir, err))
			}
		})
		return len(left) == 0
	})
	if err != nil {
		return fmt.Errorf("cgroups: %w: %q", err, left)
	}
	return nil
}

// unmountAll undoes all mounts below the directory, newest first.
func (d *Daemon) unmountAll() error {
	snap, err := kernel.Take(kernel.Scope{Dirs: []string{d.Dir}})
	if err != nil {
		return err
	}
	points := append(snap[kernel.Mounts], snap[kernel.Namespaces]...)
	slices.SortFunc(points, func(a, b string) int { return len(b) - len(a) })
	for _, p := range points {
		point, _, _ := strings.Cut(p, " (")
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// Reboot simulates one, except that the kernel stays: all processes are killed, what was mounted is unmounted, cgroups,
// the pods' links and run_root are gone. The daemon is not started.
func (d *Daemon) Reboot() error {
	if err := errors.Join(d.Kill(Serve), d.killAll(), d.unmountAll(), d.removeCgroups()); err != nil {
		return err
	}
	run := filepath.Join(d.Dir, "run")
	if err := os.RemoveAll(run); err != nil {
		return err
	}
	return os.MkdirAll(run, 0o755)
}

// Sweep ends what daemons with directories right below base left because their suite was killed: processes that name
// base in their arguments, the daemons' own cgroups, mounts below base. It touches nothing else, and returns whether
// it found any.
func Sweep(base string) (found bool, err error) {
	configs, err := filepath.Glob(filepath.Join(base, "*", "orlop.toml"))
	if err != nil {
		return false, err
	}
	var errs []error
	for _, c := range configs {
		d := &Daemon{Options: Options{Dir: filepath.Dir(c)}}
		errs = append(errs, d.killAll(), d.unmountAll(), d.removeCgroups())
	}
	servers, err := kernel.Find(base, string(Serve)) // registries
	errs = append(errs, err)
	for _, p := range servers {
		errs = append(errs, unix.Kill(p.Pid, unix.SIGKILL))
	}
	return len(configs)+len(servers) > 0, errors.Join(errs...)
}
