// Package user finds out who a container's process runs as: numbers for the names in a request or an image, from the
// passwd and group files of the container's root filesystem. These files are the image's: they may be links out of
// it, devices, pipes, or gigabytes.
package user

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/orlop/orlop/oci/spec"
)

// ErrInvalid is for a user or group that can't be had.
var ErrInvalid = errors.New("invalid user")

// Request is what the pod and the image say about the user. UID and GID win over Name, and all over Image.
type Request struct {
	UID, GID *int64 // run_as_user, run_as_group
	Name     string // run_as_username
	Image    string // the image's USER: "name", "uid", "name:group", "uid:gid"
	Groups   []int64
	// Strict keeps the groups that the image's group file gives the user away (SupplementalGroupsPolicy, KEP-3619).
	Strict bool
}

// maxFile bounds a passwd or group file. The largest in use have some ten thousand entries.
const maxFile = 4 << 20

// Resolve reads the files below rootfs. A name that is not in them is an error; a number needs no entry. A number is
// an ID and never a name: an entry that is called "1000" and has ID 0 would make root of a pod that must not be.
func Resolve(rootfs string, r Request) (spec.User, error) {
	var name, group string
	switch {
	case r.UID != nil:
		name = strconv.FormatInt(*r.UID, 10)
	case r.Name != "":
		name = r.Name
	default:
		name, group, _ = strings.Cut(r.Image, ":")
	}
	if r.GID != nil {
		if r.UID == nil && r.Name == "" {
			return spec.User{}, fmt.Errorf("%w: run_as_group %d without run_as_user or run_as_username", ErrInvalid, *r.GID)
		}
		group = strconv.FormatInt(*r.GID, 10)
	}
	root, err := os.OpenFile(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return spec.User{}, fmt.Errorf("root filesystem: %w", err)
	}
	defer root.Close()
	out, err := primary(root, name)
	if err != nil {
		return spec.User{}, err
	}
	groups, err := readGroups(root)
	if err != nil {
		return spec.User{}, err
	}
	if group != "" {
		if out.GID, err = groupID(groups, group); err != nil {
			return spec.User{}, err
		}
	}
	out.AdditionalGIDs, err = supplemental(out, groups, r)
	return out, err
}

// primary finds the passwd entry of a name or number.
func primary(root *os.File, name string) (spec.User, error) {
	if name == "" {
		name = "0"
	}
	data, err := read(root, "etc/passwd")
	if err != nil {
		return spec.User{}, err
	}
	uid, numeric, err := number("user", name)
	if err != nil {
		return spec.User{}, err
	}
	entries, err := user.ParsePasswdFilter(strings.NewReader(data), func(u user.User) bool {
		if numeric {
			return u.Uid == int(uid)
		}
		return u.Name == name
	})
	if err != nil {
		return spec.User{}, fmt.Errorf("%w: /etc/passwd: %w", ErrInvalid, err)
	}
	if len(entries) == 0 {
		if !numeric {
			return spec.User{}, fmt.Errorf("%w: user %q is not in the image's /etc/passwd; name one that is, or a number", ErrInvalid, name)
		}
		return spec.User{UID: uid, Home: "/"}, nil
	}
	e := entries[0]
	if e.Uid < 0 || e.Gid < 0 || e.Uid > math.MaxInt32 || e.Gid > math.MaxInt32 {
		return spec.User{}, fmt.Errorf("%w: /etc/passwd: user %q has ID %d:%d", ErrInvalid, e.Name, e.Uid, e.Gid)
	}
	home := e.Home
	if !strings.HasPrefix(home, "/") {
		home = "/"
	}
	return spec.User{UID: uint32(e.Uid), GID: uint32(e.Gid), Name: e.Name, Home: home}, nil
}

func groupID(groups []user.Group, name string) (uint32, error) {
	gid, numeric, err := number("group", name)
	if err != nil || numeric {
		return gid, err
	}
	for _, g := range groups {
		if g.Name == name && g.Gid >= 0 && g.Gid <= math.MaxInt32 {
			return uint32(g.Gid), nil
		}
	}
	return 0, fmt.Errorf("%w: group %q is not in the image's /etc/group; name one that is, or a number", ErrInvalid, name)
}

// supplemental are the request's groups and, unless the policy is Strict, those that the image gives the user. The
// primary group is always among them (CRI, ContainerUser).
func supplemental(u spec.User, groups []user.Group, r Request) ([]uint32, error) {
	out := []uint32{u.GID}
	add := func(gid uint32) {
		if !slices.Contains(out, gid) {
			out = append(out, gid)
		}
	}
	if !r.Strict && u.Name != "" {
		for _, g := range groups {
			if slices.Contains(g.List, u.Name) && g.Gid >= 0 && g.Gid <= math.MaxInt32 {
				add(uint32(g.Gid))
			}
		}
	}
	for _, gid := range r.Groups {
		if gid < 0 || gid > math.MaxInt32 {
			return nil, fmt.Errorf("%w: supplemental group %d is not between 0 and %d", ErrInvalid, gid, math.MaxInt32)
		}
		add(uint32(gid))
	}
	return out, nil
}

func readGroups(root *os.File) ([]user.Group, error) {
	data, err := read(root, "etc/group")
	if err != nil {
		return nil, err
	}
	groups, err := user.ParseGroup(strings.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: /etc/group: %w", ErrInvalid, err)
	}
	return groups, nil
}

// number tells whether an ID was meant, and refuses those that the kernel can't tell from -1 in a signed word.
func number(what, s string) (uint32, bool, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, false, nil
	}
	if err != nil || n < 0 || n > math.MaxInt32 {
		return 0, false, fmt.Errorf("%w: %s %s is not between 0 and %d", ErrInvalid, what, s, math.MaxInt32)
	}
	return uint32(n), true, nil
}

// read returns a regular file below root; "" if it is missing.
func read(root *os.File, name string) (string, error) {
	handle, err := pathrs.OpenatInRoot(root, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%w: /%s: %w", ErrInvalid, name, err)
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%w: /%s in the image is not a regular file", ErrInvalid, name)
	}
	if info.Size() > maxFile {
		return "", fmt.Errorf("%w: /%s in the image has %d bytes, at most %d", ErrInvalid, name, info.Size(), maxFile)
	}
	f, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("/%s: %w", filepath.Base(name), err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(data), err
}
