package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// createOwned makes a user namespace and the others in it. A thread of ours can't enter a new user namespace, so a
// child is cloned into all of them and stopped by ptrace(2) at the moment in which it would begin to run this same
// program: it holds the namespaces until they are pinned, executes nothing, and is killed.
func (o Options) createOwned(wanted []kind, flags int) error {
	return onThread(func() error { // ptrace belongs to a thread
		child, err := o.holder(flags)
		if err != nil {
			return err
		}
		from := filepath.Join("/proc", strconv.Itoa(child.Pid), "ns")
		err = enter(wanted, from)
		if err == nil {
			err = errors.Join(o.setUp(), o.ownQueues(), o.writeSysctls(o.asRootOf(wanted, from)), o.pin(wanted, from))
		}
		_ = child.Kill()
		_, werr := child.Wait()
		return errors.Join(err, werr)
	})
}

func (o Options) holder(flags int) (*os.Process, error) {
	child, err := os.StartProcess("/proc/self/exe", []string{"orlop-namespaces"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags: uintptr(flags), Ptrace: true, Pdeathsig: syscall.SIGKILL,
			UidMappings: idMaps(o.UIDs), GidMappings: idMaps(o.GIDs), GidMappingsEnableSetgroups: true,
		},
	})
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%w: the kernel refuses the maps of user IDs %v or group IDs %v: they overlap, or have too many parts: %w",
			ErrInvalid, o.UIDs, o.GIDs, err)
	}
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	status, err := waitStop(child.Pid)
	if err == nil && status.Stopped() {
		return child, nil
	}
	_ = child.Kill()
	_, _ = child.Wait()
	if err != nil {
		return nil, fmt.Errorf("user namespace: its holder: %w", os.NewSyscallError("wait4", err))
	}
	return nil, fmt.Errorf("user namespace: its holder did not stop: status %#x", status)
}

func waitStop(pid int) (status unix.WaitStatus, err error) {
	for {
		if _, err = unix.Wait4(pid, &status, 0, nil); err != unix.EINTR {
			return status, err
		}
	}
}

// enter takes this thread where the host name and sysctls are to be set. It keeps its own user namespace, whose root
// may do so.
func enter(wanted []kind, from string) error {
	for _, k := range wanted {
		if k.flag == unix.CLONE_NEWUSER {
			continue
		}
		f, err := os.Open(filepath.Join(from, k.name))
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), k.flag)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, os.NewSyscallError("setns", err))
		}
	}
	return nil
}

// ownQueues gives the directory of an IPC namespace's message queues to the root of the user namespace. It belongs to
// whoever cloned the namespace, which is the root of the node, and so nobody inside could change its SELinux label.
func (o Options) ownQueues() error {
	if !o.IPC {
		return nil
	}
	dir, err := queues()
	if err != nil {
		return fmt.Errorf("message queues: %w", err)
	}
	defer unix.Close(dir)
	err = unix.Fchownat(dir, "", int(rootOf(o.UIDs)), int(rootOf(o.GIDs)), unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("message queues: %w", os.NewSyscallError("fchownat", err))
	}
	return nil
}

// queues opens the directory of the message queues of this thread's IPC namespace, by a mount that is nowhere.
func queues() (int, error) {
	fs, err := unix.Fsopen("mqueue", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	return dir, os.NewSyscallError("fsmount", err)
}

// asRootOf returns a way to act as the root of the new user namespace, in the others. Since Linux 6.10 the kernel lets
// nobody else write sysctls of an IPC namespace, not even the root of the node; before, nobody but that one. It takes a
// thread of its own: the change of the user takes its capabilities away.
func (o Options) asRootOf(wanted []kind, from string) func(func() error) error {
	return func(f func() error) error {
		if err := f(); !errors.Is(err, fs.ErrPermission) {
			return err
		}
		return onThread(func() error {
			if err := enter(wanted, from); err != nil {
				return err
			}
			const unchanged = ^uintptr(0)
			// The bare system call, because the library's changes all threads of the process.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, unchanged, uintptr(rootOf(o.UIDs)), unchanged); errno != 0 {
				return os.NewSyscallError("setresuid", errno)
			}
			return f()
		})
	}
}

// rootOf is the node's ID of a namespace's root.
func rootOf(maps []IDMap) uint32 {
	for _, m := range maps {
		if m.ContainerID == 0 {
			return m.HostID
		}
	}
	return 0
}

// mapsRoot tells whether there is a root in the namespace: all that is set up in it belongs to root.
func mapsRoot(in []IDMap) bool {
	return slices.ContainsFunc(in, func(m IDMap) bool { return m.ContainerID == 0 && m.Size > 0 })
}

func idMaps(in []IDMap) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(in))
	for i, m := range in {
		out[i] = syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)}
	}
	return out
}
