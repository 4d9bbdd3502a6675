package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/conmon/child"
)

// Handoff is what a process hands to itself when it becomes the keeper by execve(2): same process, same children,
// same descriptors.
type Handoff struct {
	Listener int             `json:"listener"`
	Lock     int             `json:"lock"`
	Held     map[string]Held `json:"held"`
}

// Held is a [Hold] with descriptor numbers.
type Held struct {
	Pid   int            `json:"pid,omitempty"`
	OOM   conmon.OOM     `json:"oom,omitzero"`
	Ended bool           `json:"ended,omitempty"` // and its exit has been recorded
	Files map[string]int `json:"files"`
}

// Self is the program that this process runs, also if its file has been replaced.
const Self = "/proc/self/exe"

const handoffEnv = "ORLOP_CONMON_HANDOFF" // the number of a descriptor to read a Handoff from

// Become turns this process into the keeper that program is. It returns only if that failed. Nothing else may fork
// meanwhile, since a child would inherit what is handed over.
func Become(program string, cfg Config, h Handoff) error {
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	defer func() { _ = h.inherit(false) }()
	fd, err := unix.MemfdCreate("orlop-handoff", 0) // inherited
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "handoff")
	defer f.Close()
	if err := json.NewEncoder(f).Encode(h); err != nil {
		return err
	}
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		return os.NewSyscallError("lseek", err)
	}
	if err := h.inherit(true); err != nil {
		return err
	}
	args := []string{"orlop-conmon", "keeper", "--run-dir", cfg.RunDir, "--exit-dir", cfg.ExitDir}
	err = unix.Exec(program, args, append(os.Environ(), handoffEnv+"="+strconv.Itoa(fd)))
	return &os.PathError{Op: "exec", Path: program, Err: err}
}

// inherit says whether a program that this process executes gets the descriptors.
func (h Handoff) inherit(yes bool) error {
	err := errors.Join(inherit(h.Listener, yes), inherit(h.Lock, yes))
	for _, c := range h.Held {
		for _, fd := range c.Files {
			err = errors.Join(err, inherit(fd, yes))
		}
	}
	return err
}

// Inherited returns what this process handed to itself, nil if it is a keeper from the start.
func Inherited() (*Handoff, error) {
	value, ok := os.LookupEnv(handoffEnv)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(handoffEnv)
	fd, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("%s=%q: %w", handoffEnv, value, err)
	}
	f := os.NewFile(uintptr(fd), "handoff")
	defer f.Close()
	h := new(Handoff)
	if err := json.NewDecoder(f).Decode(h); err != nil {
		return nil, fmt.Errorf("handoff: %w", err)
	}
	return h, nil
}

func (k *keeper) takeOver(h *Handoff) error {
	if err := h.inherit(false); err != nil {
		return err
	}
	k.lock = os.NewFile(uintptr(h.Lock), "lock")
	k.listener = os.NewFile(uintptr(h.Listener), "listener")
	for id, c := range h.Held {
		held := &holding{pid: c.Pid, oom: c.OOM, ended: c.Ended, files: map[string]*os.File{}}
		for name, fd := range c.Files {
			held.files[name] = os.NewFile(uintptr(fd), name)
		}
		k.held[id] = held
	}
	if socket := k.held[Node].files[FileEvents]; socket != nil {
		k.readEvents(child.Events{Socket: socket})
	}
	k.watchForeign()
	return nil
}

func inherit(fd int, yes bool) error {
	flags := unix.FD_CLOEXEC
	if yes {
		flags = 0
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags)
	return os.NewSyscallError("fcntl(F_SETFD)", err)
}

// FileNumber is the descriptor of a file that somebody else may be reading.
func FileNumber(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	err = raw.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}
