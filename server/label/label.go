// Package label gives pods and containers their SELinux labels. Each pod has a pair of categories (MCS) of its own,
// which keeps pods apart that have the same type.
package label

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrInvalid is for options that make no label.
var ErrInvalid = errors.New("invalid SELinux options")

// Enabled tells whether labels mean anything on this machine.
func Enabled() bool { return selinux.GetEnabled() }

// Disable makes all functions of this package, and the kernel objects that follow from them, go without labels. It is
// for the program's start.
func Disable() { selinux.SetDisabled() }

// Pair are the labels of a process and of the files that it may change; "" for none.
type Pair struct{ Process, Mount string }

// Pod makes the labels of a pod: from its options, with a pair of categories that no other pod has unless they name a
// level. Release gives the categories back.
func Pod(o *cri.SELinuxOption) (Pair, error) {
	if !Enabled() {
		return Pair{}, nil
	}
	return initLabels(words(o))
}

// Container makes the labels of a container: the pod's, with the parts that its own options name. A privileged one has
// no process label, which leaves it the runtime's.
func Container(pod Pair, o *cri.SELinuxOption, privileged bool) (Pair, error) {
	if !Enabled() {
		return Pair{}, nil
	}
	if privileged && empty(o) {
		return Pair{Mount: pod.Mount}, nil
	}
	if empty(o) {
		return pod, nil
	}
	base, err := selinux.DupSecOpt(pod.Process)
	if err != nil {
		return Pair{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return initLabels(append(base, words(o)...))
}

// Reserve keeps the categories of a pod that an earlier run of the daemon made.
func Reserve(process string) {
	if process != "" {
		selinux.ReserveLabel(process)
	}
}

// Release gives the categories of a pod back.
func Release(process string) {
	if process != "" {
		selinux.ReleaseLabel(process)
	}
}

// Relabel labels a file or tree for a container, or for all containers if it is shared. What the whole system needs,
// such as /usr, is refused. A file system without labels of its own (NFS, FAT, one mounted with a context) is let be:
// what may be read there is said by its mount.
func Relabel(path, mount string, shared bool) error {
	if mount == "" {
		return nil
	}
	if err := label.Relabel(path, mount, shared); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("%w: relabel %s: %w", ErrInvalid, path, err)
	}
	return nil
}

// Shared is a mount label without the categories that keep pods apart: for files that all containers may read.
func Shared(mount string) (string, error) {
	if mount == "" {
		return "", nil
	}
	l, err := selinux.NewContext(mount)
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrInvalid, mount, err)
	}
	l["level"] = "s0"
	return l.Get(), nil
}

func initLabels(options []string) (Pair, error) {
	process, mount, err := label.InitLabels(options)
	if err == nil && process != "" {
		if err = selinux.SecurityCheckContext(process); err != nil { // the policy has no such user, role or type
			selinux.ReleaseLabel(process)
		}
	}
	if err != nil {
		return Pair{}, fmt.Errorf("%w: %s: %w", ErrInvalid, strings.Join(options, " "), err)
	}
	return Pair{process, mount}, nil
}

func empty(o *cri.SELinuxOption) bool {
	return o.GetUser() == "" && o.GetRole() == "" && o.GetType() == "" && o.GetLevel() == ""
}

// words are the options as the library takes them.
func words(o *cri.SELinuxOption) []string {
	var out []string
	for _, part := range []struct{ name, value string }{
		{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}, {"level", o.GetLevel()},
	} {
		if part.value != "" {
			out = append(out, part.name+":"+part.value)
		}
	}
	return out
}
