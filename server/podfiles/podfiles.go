// Package podfiles makes the files that all containers of a pod share: resolv.conf, hosts, hostname and /dev/shm.
package podfiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrInvalid is for a DNS configuration that can't be written down.
var ErrInvalid = errors.New("invalid pod files")

// DefaultShmBytes is the size of /dev/shm where the pod asks for no other, as with Docker and CRI-O.
const DefaultShmBytes = 64 << 20

// Files says what to make in Dir, which exists.
type Files struct {
	Dir      string
	DNS      *cri.DNSConfig // one that says nothing copies the node's resolv.conf, as CRI-O and containerd do
	Hostname string
	// HostNetwork: the pod gets a copy of the node's hosts file. HostIPC: it uses the node's /dev/shm, so none is made.
	HostNetwork, HostIPC bool

	ShmBytes int64 // 0 for DefaultShmBytes
	// SELinux labels, "" for none: of /dev/shm, and of the files, which containers of any level must be able to read.
	ShmLabel, FileLabel string

	UID, GID uint32 // the owner of the files: root of the pod's user namespace
}

// Paths of the files in a pod's directory.
func Resolv(dir string) string   { return filepath.Join(dir, "resolv.conf") }
func Hosts(dir string) string    { return filepath.Join(dir, "hosts") }
func Hostname(dir string) string { return filepath.Join(dir, "hostname") }
func Shm(dir string) string      { return filepath.Join(dir, "shm") }

// The node's own files.
var (
	hostResolv = "/etc/resolv.conf"
	hostHosts  = "/etc/hosts"
)

// podHosts is what a pod with a network of its own finds in hosts(5). The kubelet mounts a better one over it, with
// the pod's name and address.
const podHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

// Make makes the files. A repeat changes nothing but what f changes.
func Make(_ context.Context, f Files) error {
	resolv, err := resolvConf(f.DNS)
	if err != nil {
		return err
	}
	hosts, err := f.hosts()
	if err != nil {
		return err
	}
	err = errors.Join(f.write(Resolv(f.Dir), resolv), f.write(Hosts(f.Dir), hosts), f.write(Hostname(f.Dir), f.Hostname+"\n"))
	if err != nil {
		return err
	}
	if f.HostIPC {
		return nil
	}
	return f.makeShm()
}

func (f Files) hosts() (string, error) {
	if !f.HostNetwork {
		return podHosts, nil
	}
	return readIfThere(hostHosts)
}

func readIfThere(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// Remove unmounts and removes the files. It succeeds if there are none.
func Remove(_ context.Context, dir string) error {
	shm := Shm(dir)
	for {
		// Lazily: a container that is still going down may have it open.
		err := unix.Unmount(shm, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // nothing is mounted there
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", shm, err)
		}
	}
	var all []error
	for _, path := range []string{shm, Resolv(dir), Hosts(dir), Hostname(dir)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

func (f Files) write(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	if f.FileLabel != "" {
		if err := unix.Lsetxattr(path, "security.selinux", []byte(f.FileLabel), 0); err != nil {
			return fmt.Errorf("label %s: %w", path, err)
		}
	}
	if f.UID == 0 && f.GID == 0 {
		return nil
	}
	return os.Chown(path, int(f.UID), int(f.GID))
}

func (f Files) makeShm() error {
	shm := Shm(f.Dir)
	if err := os.Mkdir(shm, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if mounted(shm) {
		return nil
	}
	size := f.ShmBytes
	if size <= 0 {
		size = DefaultShmBytes
	}
	options := []string{"mode=1777", "size=" + strconv.FormatInt(size, 10), fmt.Sprintf("uid=%d,gid=%d", f.UID, f.GID)}
	if f.ShmLabel != "" {
		options = append(options, "context="+strconv.Quote(f.ShmLabel))
	}
	const flags = unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("shm", shm, "tmpfs", flags, strings.Join(options, ",")); err != nil {
		return fmt.Errorf("mount %s: %w", shm, err)
	}
	return nil
}

func mounted(path string) bool {
	var here, above unix.Stat_t
	if unix.Lstat(path, &here) != nil || unix.Lstat(filepath.Dir(path), &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}

// resolvConf is resolv.conf(5) for a pod. What comes from the request must stay on its line.
func resolvConf(dns *cri.DNSConfig) (string, error) {
	if len(dns.GetServers())+len(dns.GetSearches())+len(dns.GetOptions()) == 0 {
		return readIfThere(hostResolv)
	}
	var b strings.Builder
	for _, part := range []struct {
		field, keyword string
		values         []string
		each           bool // a line for each value
	}{
		{"dns_config.searches", "search", dns.Searches, false},
		{"dns_config.servers", "nameserver", dns.Servers, true},
		{"dns_config.options", "options", dns.Options, false},
	} {
		for _, v := range part.values {
			if v == "" || strings.ContainsAny(v, "\n\r\x00 \t") {
				return "", fmt.Errorf("%w: %s: %q is not one word", ErrInvalid, part.field, v)
			}
			if part.each {
				fmt.Fprintf(&b, "%s %s\n", part.keyword, v)
			}
		}
		if !part.each && len(part.values) > 0 {
			fmt.Fprintf(&b, "%s %s\n", part.keyword, strings.Join(part.values, " "))
		}
	}
	return b.String(), nil
}
