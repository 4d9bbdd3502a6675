package conmon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// unknownCode is the exit code of a process whose status nobody could learn.
const unknownCode = 255

// DecodeExit turns a child's end as waitid(2) tells it (si_code, si_status) into an exit.
func DecodeExit(code, status int) Exit {
	e := Exit{Code: status, FinishedAt: time.Now()}
	if code == cldKilled || code == cldDumped {
		e.Signal = status
		e.Code = 128 + status
	}
	return e
}

// Of sigaction(2).
const (
	cldKilled = 2
	cldDumped = 3
)

// DecodeWaitStatus does the same for a status as wait(2) packs it.
func DecodeWaitStatus(ws unix.WaitStatus) Exit {
	if ws.Signaled() {
		return DecodeExit(cldKilled, int(ws.Signal()))
	}
	return DecodeExit(1, ws.ExitStatus())
}

// UnknownExit is the end of a process that is gone without a trace.
func UnknownExit() Exit {
	return Exit{Code: unknownCode, Unknown: true, FinishedAt: time.Now()}
}

// reserveBytes is more than a record takes.
const reserveBytes = 4 << 10

// ReserveExit makes room for a container's record, so that its end can be written down, and it can be stopped and
// removed, when it has filled the disk itself.
func ReserveExit(dir, id string) error {
	f, err := openNew(dir, id)
	if err != nil {
		return fmt.Errorf("exit record: %w", err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("exit record: %w", os.NewSyscallError("fallocate", err))
	}
	return nil
}

func openNew(dir, id string) (*os.File, error) {
	return os.OpenFile(newPath(dir, id), os.O_WRONLY|os.O_CREATE|unix.O_CLOEXEC, 0o600)
}

func newPath(dir, id string) string { return filepath.Join(dir, id) + ".new" }

// RecordExit writes down how a container ended, durably: it survives a power cut once this has returned. The first
// record of a container counts, and is returned.
func RecordExit(dir, id string, e Exit, oom OOM) (Exit, error) {
	e.OOMKilled = e.OOMKilled || oom.killed(e) // first: its cgroup may be removed any moment
	if have, err := ReadExit(dir, id); err == nil && have != nil {
		return *have, nil
	}
	return e, writeExit(dir, id, e)
}

// recordPause lies between attempts to write a record: the disk may be full, or be read-only for now.
const recordPause = time.Second

// InsistExit does what RecordExit does until it succeeds, or until the container is not wanted any more: then it
// returns false.
func InsistExit(dir, id string, e Exit, oom OOM, wanted func() bool) (Exit, bool) {
	for {
		<-time.After(recordPause)
		if !wanted() {
			return e, false
		}
		recorded, err := RecordExit(dir, id, e, oom)
		if err == nil {
			return recorded, true
		}
		e = recorded // whether it was killed for lack of memory may not be told again
	}
}

func writeExit(dir, id string, e Exit) error {
	path := filepath.Join(dir, id)
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	temp, err := openNew(dir, id)
	if err != nil {
		return fmt.Errorf("exit record: %w", err)
	}
	_, err = temp.Write(data) // first: an empty file would lose what was reserved
	err = errors.Join(err, temp.Truncate(int64(len(data))), temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("exit record: %w", err)
	}
	return nil
}

// ReadExit returns the record of a container, nil if there is none.
func ReadExit(dir, id string) (*Exit, error) {
	data, err := os.ReadFile(filepath.Join(dir, id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("exit record: %w", err)
	}
	e := new(Exit)
	if err := json.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("exit record %s: %w", id, err)
	}
	return e, nil
}

// ListExits returns the IDs of all containers that have a record.
func ListExits(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("exit records: %w", err)
	}
	var ids []string
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".new") {
			ids = append(ids, entry.Name())
		}
	}
	return ids, nil
}

// RemoveExit forgets a record, or the room for it. It succeeds if there is none.
func RemoveExit(dir, id string) error {
	for _, path := range []string{newPath(dir, id), filepath.Join(dir, id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("exit record: %w", err)
		}
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
