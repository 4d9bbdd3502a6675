// Package podfiles keeps the files of pods that are not volumes, below the kubelet's root directory, where kubelet has
// them too:
//
//	pods/UID/etc-hosts                   /etc/hosts of all containers
//	pods/UID/containers/NAME/ID          a container's last words, its terminationMessagePath
//	pods/UID/userns                      the user IDs of a pod with a user namespace
package podfiles

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/runtime"
)

// Limits of last words, see the documentation of termination messages.
const (
	maxMessage      = 4096
	maxFallback     = 2048
	maxFallbackRows = 80
)

const hostsPath = "/etc/hosts"

// Dir is the kubelet's root directory.
type Dir string

// Pod is a pod's directory.
func (d Dir) Pod(uid types.UID) string { return filepath.Join(string(d), "pods", string(uid)) }

// Make makes a pod's directory.
func (d Dir) Make(uid types.UID) error {
	if err := os.MkdirAll(d.Pod(uid), 0o750); err != nil {
		return fmt.Errorf("pod directory: %w", err)
	}
	return nil
}

// Mounts writes the files of a container and returns the mounts that show them to it: the hosts file, unless the container
// has a mount there, and its last words.
func (d Dir) Mounts(p *v1.Pod, c *v1.Container, hosts string) ([]*cri.Mount, error) {
	var mounts []*cri.Mount
	if !mountsAt(c, hostsPath) {
		file := filepath.Join(d.Pod(p.UID), "etc-hosts")
		if err := write(file, hosts); err != nil {
			return nil, fmt.Errorf("hosts file: %w", err)
		}
		mounts = append(mounts, &cri.Mount{ContainerPath: hostsPath, HostPath: file, SelinuxRelabel: true, Readonly: readOnlyRoot(c)})
	}
	if c.TerminationMessagePath != "" {
		file, err := d.messageFile(p.UID, c.Name)
		if err != nil {
			return nil, fmt.Errorf("terminationMessagePath: %w", err)
		}
		mounts = append(mounts, &cri.Mount{ContainerPath: c.TerminationMessagePath, HostPath: file, SelinuxRelabel: true})
	}
	return mounts, nil
}

func readOnlyRoot(c *v1.Container) bool {
	return c.SecurityContext != nil && c.SecurityContext.ReadOnlyRootFilesystem != nil && *c.SecurityContext.ReadOnlyRootFilesystem
}

func mountsAt(c *v1.Container, path string) bool {
	for _, m := range c.VolumeMounts {
		if filepath.Clean(m.MountPath) == path {
			return true
		}
	}
	return false
}

// write changes a file in place, since containers have it mounted, and only if it differs.
func write(file, content string) error {
	if old, err := os.ReadFile(file); err == nil && string(old) == content {
		return nil
	}
	return os.WriteFile(file, []byte(content), 0o644)
}

// messageFile makes an empty file that a container of any user may write, with a name that no other start has.
func (d Dir) messageFile(uid types.UID, container string) (string, error) {
	dir := filepath.Join(d.Pod(uid), "containers", container)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	var id [4]byte
	_, _ = rand.Read(id[:])
	file := filepath.Join(dir, hex.EncodeToString(id[:]))
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		return "", err
	}
	return file, os.Chmod(file, 0o666) // whatever the umask is
}

// Message is a container's last words: what it wrote to its file, and if it failed without a word and its policy says so,
// the end of its log.
func (d Dir) Message(c *runtime.Container) string {
	path := c.Annotations[runtime.MessagePathAnnotation]
	for _, m := range c.Mounts {
		if path == "" || m.ContainerPath != path {
			continue
		}
		if message, err := head(m.HostPath); err == nil && message != "" {
			return message
		}
	}
	if c.Annotations[runtime.MessagePolicyAnnotation] == string(v1.TerminationMessageFallbackToLogsOnError) && c.ExitCode != 0 {
		if message, err := logTail(c.LogPath); err == nil && message != "" {
			return message
		}
	}
	return c.ContainerStatus.Message
}

// head reads the first bytes of a file that a container wrote. It is opened without following a link or waiting for a
// pipe: the container may have put anything there, though it can't replace what is mounted.
func head(file string) (string, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMessage))
	return string(data), err
}

// logTail is the end of a container's log: at most so many rows and bytes, without what CRI puts before each.
func logTail(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const window = 4 * (maxFallback + maxFallbackRows*64) // rows have a head of some 40 bytes
	if info, err := f.Stat(); err != nil {
		return "", err
	} else if info.Size() > window {
		if _, err := f.Seek(-window, io.SeekEnd); err != nil {
			return "", err
		}
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	rows := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	if len(rows) > maxFallbackRows {
		rows = rows[len(rows)-maxFallbackRows:]
	}
	var out []byte
	for _, row := range rows {
		if parts := bytes.SplitN(row, []byte(" "), 4); len(parts) == 4 { // time, stream, tag, text
			out = append(append(out, parts[3]...), '\n')
		}
	}
	return string(out[max(0, len(out)-maxFallback):]), nil
}

// PruneMessages removes the last words of containers that the runtime no longer has.
func (d Dir) PruneMessages(uid types.UID, have *runtime.Pod) error {
	root := filepath.Join(d.Pod(uid), "containers")
	used := map[string]bool{}
	for _, c := range have.Containers {
		for _, m := range c.Mounts {
			used[m.HostPath] = true
		}
	}
	files, err := filepath.Glob(filepath.Join(root, "*", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		if !used[file] {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
