package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// MakeCgroup makes a cgroup in all hierarchies. Its path is relative to their roots.
func MakeCgroup(path string) error {
	roots, err := CgroupRoots()
	for _, root := range roots {
		err = errors.Join(err, os.MkdirAll(filepath.Join(root, path), 0o755))
	}
	return err
}

// RemoveCgroup removes a cgroup with all below it from all hierarchies. Processes must have left it.
func RemoveCgroup(path string) error {
	roots, err := CgroupRoots()
	for _, root := range roots {
		var dirs []string
		err = errors.Join(err, walk(filepath.Join(root, path), func(path string, d fs.DirEntry) {
			if d.IsDir() {
				dirs = append(dirs, path)
			}
		}))
		for _, dir := range slices.Backward(dirs) { // children before their parents
			if rmErr := unix.Rmdir(dir); rmErr != nil && !errors.Is(rmErr, unix.ENOENT) {
				err = errors.Join(err, fmt.Errorf("remove %s: %w", dir, rmErr))
			}
		}
	}
	return err
}

// UnmountBelow unmounts what is mounted below a directory, the last mount first.
func UnmountBelow(dir string) error {
	snap := Snapshot{}
	if err := mounts(Scope{Dirs: []string{dir}}, snap); err != nil {
		return err
	}
	points := append(snap[Mounts], snap[Namespaces]...)
	var err error
	for _, p := range slices.Backward(points) {
		point, _, _ := strings.Cut(p, " (")
		if unErr := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); unErr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", point, unErr))
		}
	}
	return err
}
