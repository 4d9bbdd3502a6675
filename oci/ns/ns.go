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
	if err := detach(dir); err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
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

// unpin lets go of a namespace. Copies of the pin in other mount namespaces, to which the mount was propagated or which
// were made while it was there, go with the file (Linux 3.19), so it does not matter how the mounts around it propagate.
func unpin(path string) error {
	if err := detach(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// detach takes off all that is mounted on path: there may be several, after a create that was killed.
func detach(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // not a mount any more
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpin %s: %w", path, os.NewSyscallError("umount2", err))
		}
	}
}

// onThread runs f on a thread of its own that ends with it. If f panics, so does onThread: who guards against panics
// does so on its own goroutine.
func onThread(f func() error) error {
	type end struct {
		err   error
		panic any
	}
	done := make(chan end, 1)
	go func() {
		var e end
		defer func() {
			e.panic = recover()
			done <- e
		}()
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			e.err = f()
			return
		}
		// The first thread of a process does not end, and stands for all of it in /proc/self. While it is held here,
		// the next goroutine gets another.
		defer runtime.UnlockOSThread()
		e.err = onThread(f)
	}()
	e := <-done
	if e.panic != nil {
		panic(e.panic)
	}
	return e.err
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
