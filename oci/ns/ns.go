// Package ns makes the namespaces of a pod and pins them as bind mounts in the pod's directory, so that they live
// without a process.
package ns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// IDMap maps Size IDs from ContainerID on to IDs from HostID on, as in user_namespaces(7).
type IDMap struct{ ContainerID, HostID, Size uint32 }

// Options says which namespaces a pod gets of its own.
type Options struct {
	// Dir is where they are pinned: Dir/net, Dir/ipc, Dir/uts, Dir/user.
	Dir           string
	Net, IPC, UTS bool
	// User asks for a user namespace with these maps, which then owns the others.
	User       bool
	UIDs, GIDs []IDMap
	// Hostname is set in the UTS namespace; "" leaves the host's.
	Hostname string
	// Sysctls are written in the new namespaces. Each must belong to a namespace that is made (see Namespaced).
	Sysctls map[string]string
}

// kind is one of the namespaces, in the order in which they are pinned. The user namespace comes first because the
// others belong to it.
type kind struct {
	name string
	flag int
	want func(Options) bool
}

var kinds = []kind{
	{"user", unix.CLONE_NEWUSER, func(o Options) bool { return o.User }},
	{"uts", unix.CLONE_NEWUTS, func(o Options) bool { return o.UTS }},
	{"ipc", unix.CLONE_NEWIPC, func(o Options) bool { return o.IPC }},
	{"net", unix.CLONE_NEWNET, func(o Options) bool { return o.Net }},
}

func (o Options) kinds() (wanted []kind, flags int) {
	for _, k := range kinds {
		if k.want(o) {
			wanted = append(wanted, k)
			flags |= k.flag
		}
	}
	return wanted, flags
}

// Create makes and pins what o asks for, brings up loopback in a new network namespace, and sets host name and
// sysctls. If it fails, nothing is left. A repeat after success changes nothing; after a crash amid an earlier create
// it begins anew.
func Create(ctx context.Context, o Options) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	wanted, flags := o.kinds()
	if o.complete(wanted) {
		return nil
	}
	if err := Delete(ctx, o.Dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("namespaces: %w", err), Delete(context.WithoutCancel(ctx), o.Dir))
		}
	}()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	if flags == 0 {
		return nil
	}
	if o.User {
		return o.createOwned(wanted, flags)
	}
	// The thread is never unlocked: it ends with its goroutine, and the namespaces live on by their pins.
	return onThread(func() error {
		if err := unix.Unshare(flags); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return errors.Join(o.setUp(), o.writeSysctls(nil), o.pin(wanted, "/proc/thread-self/ns"))
	})
}

// complete tells whether an earlier create came to its end: pinning is its last act.
func (o Options) complete(wanted []kind) bool {
	if _, err := os.Stat(o.Dir); err != nil {
		return false
	}
	for _, k := range wanted {
		if !Pinned(filepath.Join(o.Dir, k.name)) {
			return false
		}
	}
	return true
}

// Pinned tells whether a namespace is bound at path. After a reboot the file may still be there, and nothing on it.
func Pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// setUp is done by a thread that is in the new namespaces.
func (o Options) setUp() error {
	if o.Net {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if o.UTS && o.Hostname != "" {
		if err := unix.Sethostname([]byte(o.Hostname)); err != nil {
			return fmt.Errorf("host name %q: %w", o.Hostname, os.NewSyscallError("sethostname", err))
		}
	}
	return nil
}

// loopbackUp does by ioctl what netlink would do in four messages.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: %w", os.NewSyscallError("ioctl(SIOCSIFFLAGS)", err))
	}
	return nil
}

func (o Options) pin(wanted []kind, from string) error {
	for _, k := range wanted {
		at := filepath.Join(o.Dir, k.name)
		f, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o444)
		if err != nil {
			return err
		}
		f.Close()
		if err := unix.Mount(filepath.Join(from, k.name), at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s: %w", at, os.NewSyscallError("mount", err))
		}
	}
	return nil
}

// Delete unpins all that is in dir and removes dir. It succeeds if there is nothing.
func Delete(_ context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	for _, entry := range entries {
		if err := unpin(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("namespaces: %w", err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("namespaces: %w", err)
	}
	return nil
}

func unpin(path string) error {
	for { // there may be several mounts on it, after a create that was killed
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpin %s: %w", path, os.NewSyscallError("umount2", err))
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// onThread runs f on a thread of its own that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// The first thread of a process does not end, and stands for all of it in /proc/self. While it is held here,
		// the next goroutine gets another.
		err := onThread(f)
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Do runs f in the network namespace at path.
func Do(path string, f func() error) error {
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer target.Close()
	return onThread(func() error {
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		defer home.Close()
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace %s: %w", path, os.NewSyscallError("setns", err))
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // as it was: others may use the thread
		}
		return err
	})
}
