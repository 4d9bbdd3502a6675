// Package mount is what a kubelet asks of the kernel about mounts, whoever made them.
package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mounted tells whether something is mounted at path; nothing is at a path that does not exist.
func Mounted(path string) (bool, error) {
	mounted, err := mountinfo.Mounted(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return mounted, err
}

// UnmountBelow unmounts all that is mounted at or below a directory, what was mounted last first. A path that leads over
// symbolic links is found by where it leads: people put a kubelet's directory on another disk in this way.
func UnmountBelow(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("mounts below %s: %w", dir, err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// Share makes a directory one whose mounts are seen in all mount namespaces that have it too. A storage driver in a pod
// mounts volumes for other pods (mountPropagation: Bidirectional), which otherwise nobody would see. Nothing is done where
// it is so already, as it is on a machine with systemd.
func Share(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	above, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !within(dir, m.Mountpoint), false })
	if err != nil {
		return fmt.Errorf("mounts above %s: %w", dir, err)
	}
	var nearest *mountinfo.Info
	for _, m := range above { // of several at one place the last one is seen
		if nearest == nil || len(m.Mountpoint) >= len(nearest.Mountpoint) {
			nearest = m
		}
	}
	if nearest != nil && strings.Contains(nearest.Optional, "shared:") {
		return nil
	}
	if nearest == nil || nearest.Mountpoint != dir {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts below %s: %w", dir, err)
	}
	return nil
}

// within tells whether path is dir or below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}
