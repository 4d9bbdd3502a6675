package ns

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// ErrInvalid is for options that can't be met; the text names the field.
var ErrInvalid = errors.New("invalid namespaces")

// Sysctls of the IPC namespace beside kernel.shm*, kernel.msg* and fs.mqueue.* (ipc_namespaces(7)).
var ipcSysctls = []string{"kernel.sem", "kernel.shm_rmid_forced"}

// Namespaced tells which namespace a sysctl belongs to: "net", "ipc" or "uts"; "" if it is the whole node's, or is
// not the name of a sysctl.
func Namespaced(sysctl string) string {
	name, ok := dotted(sysctl)
	if !ok {
		return ""
	}
	switch {
	case strings.HasPrefix(name, "net."):
		return "net"
	case strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"), strings.HasPrefix(name, "fs.mqueue."),
		slices.Contains(ipcSysctls, name):
		return "ipc"
	case name == "kernel.domainname", name == "kernel.hostname":
		return "uts"
	}
	return ""
}

// dotted turns both ways to write a name into one: as in sysctl(8), the first of "." and "/" separates, and the other
// stands for itself ("net/ipv4/conf/eth0.1/forwarding" is the same as "net.ipv4.conf.eth0/1.forwarding").
func dotted(name string) (string, bool) {
	if i := strings.IndexAny(name, "./"); i > 0 && name[i] == '/' {
		name = strings.NewReplacer("/", ".", ".", "/").Replace(name)
	}
	for part := range strings.SplitSeq(name, ".") {
		if part == "" || strings.ContainsAny(part, "\x00\n") || slices.Contains(strings.Split(part, "/"), "") {
			return "", false
		}
	}
	return name, true
}

// path is the file of a sysctl whose name is [dotted]. No part of it can climb: a "/" of the name became a "." in it,
// and parts are not empty.
func path(name string) string {
	return "/proc/sys/" + strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

func (o Options) check() error {
	has := map[string]bool{"net": o.Net, "ipc": o.IPC, "uts": o.UTS}
	for name, value := range o.Sysctls {
		space := Namespaced(name)
		if space == "" {
			return fmt.Errorf("%w: sysctl %q belongs to no namespace of a pod; set it on the node", ErrInvalid, name)
		}
		if !has[space] {
			return fmt.Errorf("%w: sysctl %q: the pod uses the node's %s namespace; give it one of its own", ErrInvalid, name, space)
		}
		if strings.ContainsAny(value, "\x00\n") {
			return fmt.Errorf("%w: sysctl %q: value %q is not one line", ErrInvalid, name, value)
		}
	}
	if o.User && (!mapsRoot(o.UIDs) || !mapsRoot(o.GIDs)) {
		return fmt.Errorf("%w: a user namespace needs maps of user and group IDs that have 0", ErrInvalid)
	}
	return nil
}

// writeSysctls is called on a thread in the namespaces: the kernel shows each its own. asRoot, unless nil, is how to
// write those of the IPC namespace.
func (o Options) writeSysctls(asRoot func(func() error) error) error {
	for _, name := range slices.Sorted(maps.Keys(o.Sysctls)) { // so that an error is the same one each time
		write := func() error {
			key, _ := dotted(name)
			return os.WriteFile(path(key), []byte(o.Sysctls[name]), 0)
		}
		var err error
		if asRoot != nil && Namespaced(name) == "ipc" {
			err = asRoot(write)
		} else {
			err = write()
		}
		if err != nil {
			return fmt.Errorf("%w: sysctl %q = %q: %w", ErrInvalid, name, o.Sysctls[name], err)
		}
	}
	return nil
}
