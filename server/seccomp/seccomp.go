// Package seccomp reads the seccomp profiles that pods name on the node (SecurityProfile, Localhost).
package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrInvalid is for a profile that can't be used.
var ErrInvalid = errors.New("invalid seccomp profile")

// maxBytes bounds a profile. The largest that is known, with every system call listed, has about 100 kB.
const maxBytes = 1 << 20

// Load reads the profile at an absolute path: the kubelet has put its own root before what the pod says.
func Load(path string) ([]byte, error) {
	if !filepath.IsAbs(path) || path != filepath.Clean(path) {
		return nil, fmt.Errorf("%w: localhost_ref %q is not a clean absolute path", ErrInvalid, path)
	}
	// Without O_NONBLOCK a fifo would hold us up here.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxBytes {
		return nil, fmt.Errorf("%w: %s is not a regular file of at most %d bytes", ErrInvalid, path, maxBytes)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxBytes))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var profile struct {
		DefaultAction rspec.LinuxSeccompAction `json:"defaultAction"`
	}
	if err := json.Unmarshal(data, &profile); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	if profile.DefaultAction == "" {
		return nil, fmt.Errorf("%w: %s has no defaultAction, such as SCMP_ACT_ERRNO", ErrInvalid, path)
	}
	return data, nil
}
