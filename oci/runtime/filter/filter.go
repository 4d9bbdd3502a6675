// Package filter has seccomp profiles compiled once, not by each process that starts in a container.
//
// libcontainer's child, the last code of ours that runs in a container, compiles the profile by libseccomp, which takes
// longer than all else that it does. Whoever starts the child gives it the compiled filter instead:
//
//	worker:  Cache.File ──▶ a sealed file: what libseccomp was told, and what it made of that ──▶ descriptor 3 of the child
//	child:   Adopt maps it; libcontainer tells libseccomp the same, and its export writes what is in the file
//
// The linker puts the functions of filter.c in the place of some of libseccomp's (ld(1), --wrap). They note what
// libseccomp is told, and tell it only when a filter is exported that is not in the file. A file that does not match to the
// last byte is of no use, and the child compiles the profile itself.
package filter

/*
#cgo pkg-config: libseccomp
#cgo LDFLAGS: -Wl,--wrap=seccomp_init -Wl,--wrap=seccomp_arch_add -Wl,--wrap=seccomp_attr_set
#cgo LDFLAGS: -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_export_bpf
#cgo LDFLAGS: -Wl,--wrap=seccomp_rule_add_exact_array -Wl,--wrap=seccomp_arch_remove -Wl,--wrap=seccomp_merge
#cgo LDFLAGS: -Wl,--wrap=seccomp_reset -Wl,--wrap=seccomp_load -Wl,--wrap=seccomp_export_pfc
#include "filter.h"
*/
import "C"

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"
)

// given is the descriptor at which a child finds the file: the first one after its standard streams.
const given = 3

// seals make a file that nobody can change any more (fcntl(2)).
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// Adopt takes the filter that this process was given, if it was. The descriptor, whatever it is, stays open until the process
// executes its program, so that nothing else gets its number, and not longer.
func Adopt() {
	unix.CloseOnExec(given)
	got, err := unix.FcntlInt(given, unix.F_GET_SEALS, 0)
	if err != nil || got&seals != seals { // the kernel may have put another seal on it: F_SEAL_EXEC
		return
	}
	C.filter_adopt(given)
}

// most is how many filters are kept; nodes have one or a few profiles.
const most = 16

// Cache keeps filters. The zero Cache is empty.
type Cache struct {
	mu     sync.Mutex
	files  map[profileID]*os.File
	oldest []profileID
}

type profileID [sha256.Size]byte

// File is for a child that is to run with the profile, as the first of its extra files; the caller closes it.
func (c *Cache) File(profile *configs.Seccomp) (*os.File, error) {
	text, err := json.Marshal(profile)
	if err != nil {
		return nil, err
	}
	id := profileID(sha256.Sum256(text))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.files[id] == nil {
		f, err := compile(profile)
		if err != nil {
			return nil, err
		}
		c.putLocked(id, f)
	}
	fd, err := unix.FcntlInt(c.files[id].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "seccomp"), nil
}

func (c *Cache) putLocked(id profileID, f *os.File) {
	if c.files == nil {
		c.files = map[profileID]*os.File{}
	}
	if len(c.oldest) == most {
		c.files[c.oldest[0]].Close()
		delete(c.files, c.oldest[0])
		c.oldest = c.oldest[1:]
	}
	c.files[id] = f
	c.oldest = append(c.oldest, id)
}

// compiling is held while libseccomp is told something, since filter.c notes it for one filter at a time.
var compiling sync.Mutex

func compile(profile *configs.Seccomp) (*os.File, error) {
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL) // some nodes allow no other: vm.memfd_noexec
	if errors.Is(err, unix.EINVAL) {                                              // before Linux 6.3
		fd, err = unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "seccomp")
	compiling.Lock()
	defer compiling.Unlock()
	C.filter_capture(C.int(fd))
	// It ends with an error where it would go on to load the filter.
	_, err = seccomp.InitSeccomp(profile)
	if C.filter_captured() == 0 {
		f.Close()
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}
