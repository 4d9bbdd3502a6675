package conmon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Version is that of what one monitor leaves to the next: descriptors and their names, records of containers, the log's
// journal, exits. A program that would misread what another one leaves has another number.
const Version = 1

// Program is a file that can be a monitor.
type Program struct {
	Device  uint64 `json:"device"`
	Inode   uint64 `json:"inode"`
	Version int    `json:"version"`
}

func (p Program) sameFile(o Program) bool { return p.Device == o.Device && p.Inode == o.Inode }

// ProgramAt is the program that a path leads to, taken for one of this version.
func ProgramAt(path string) (Program, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Program{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	return Program{st.Dev, st.Ino, Version}, nil
}

// Upgrade has the monitor go on as the program at Config.Path, if that is another file than it runs: both of its processes
// are replaced in their places, and no container notices. Execs under way end. It tells whether that was done; if it fails,
// the monitor goes on as it is.
func (c *Client) Upgrade(ctx context.Context) (bool, error) {
	path, err := filepath.Abs(c.cfg.Path)
	if err != nil {
		return false, err
	}
	want, err := ProgramAt(path)
	if err != nil {
		return false, err
	}
	var is Program
	if _, err := c.call(ctx, MethodProgram, nil, &is); err != nil || is.sameFile(want) {
		return false, err
	}
	if want.Version, err = versionOf(ctx, path); err != nil {
		return false, err
	}
	if want.Version != is.Version {
		return false, fmt.Errorf("monitor: %s has version %d of what monitors leave to each other, and the running one has %d: "+
			"it can be replaced when the node has no container", path, want.Version, is.Version)
	}
	// The worker's end is the answer.
	if _, err := c.call(ctx, MethodUpgrade, path, nil); err != nil && !errors.Is(err, ErrUnavailable) {
		return false, err
	}
	if _, err := c.call(ctx, MethodProgram, nil, &is); err != nil {
		return false, err
	}
	if !is.sameFile(want) {
		return false, fmt.Errorf("monitor: it could not become %s; %s says why", path, newStarter(c.cfg).logPath)
	}
	return true, nil
}

// versionTime bounds how long a program may take to tell its version.
const versionTime = 5 * time.Second

// versionOf asks a program, which also shows that it runs here.
func versionOf(ctx context.Context, path string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "version").Output()
	if err != nil {
		return 0, fmt.Errorf("monitor: %s version: %w", path, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return 0, fmt.Errorf("monitor: %s version: %q is no number", path, out)
	}
	return n, nil
}
