package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrNotDevice is for a path at which there is neither a device nor a directory of devices.
var ErrNotDevice = errors.New("not a device")

// Devices are the device nodes of this machine, for privileged containers.
func Devices() ([]rspec.LinuxDevice, error) { return DevicesAt("/dev") }

// Directories below /dev that hold no devices of the node, or that each container has its own of.
var skipped = map[string]bool{"/dev/pts": true, "/dev/shm": true, "/dev/fd": true, "/dev/mqueue": true, "/dev/.lxc": true}

// DevicesAt returns the device at path, or all below it if it is a directory. Links are followed at path itself only.
func DevicesAt(path string) ([]rspec.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	var out []rspec.LinuxDevice
	err = filepath.WalkDir(real, func(at string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && at != real:
			return nil // devices come and go
		case err != nil:
			return err
		case entry.IsDir() && skipped[at] && at != real:
			return filepath.SkipDir
		case entry.Type()&os.ModeDevice == 0 || at == "/dev/console":
			return nil
		}
		d, err := device(at)
		if err != nil {
			return nil // it has just gone
		}
		d.Path = path + at[len(real):]
		out = append(out, d)
		return nil
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%w: %s", ErrNotDevice, path)
	}
	return out, err
}

func device(path string) (rspec.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return rspec.LinuxDevice{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	kind := "c"
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		kind = "b"
	}
	mode := os.FileMode(st.Mode & 0o7777)
	return rspec.LinuxDevice{
		Path: path, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, nil
}
