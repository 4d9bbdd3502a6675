package volume

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
)

// noID leaves an owner as it is, as chown(2) has it.
const noID = -1

// owner is to whom the files of a volume belong.
type owner struct{ uid, gid int }

func ownerOf(info fs.FileInfo) owner {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{}
	}
	return owner{int(st.Uid), int(st.Gid)}
}

// ownerFor is the pod's group, and the user whom all of its containers run as, if they agree.
func ownerFor(p *v1.Pod) owner {
	o := owner{noID, noID}
	if sc := p.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		o.gid = int(*sc.FSGroup)
	}
	for c, kind := range pod.Containers(p) {
		if kind == pod.Ephemeral {
			continue
		}
		var user *int64
		if sc := p.Spec.SecurityContext; sc != nil {
			user = sc.RunAsUser
		}
		if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
			user = c.SecurityContext.RunAsUser
		}
		if user == nil || (o.uid != noID && o.uid != int(*user)) {
			o.uid = noID
			return o
		}
		o.uid = int(*user)
	}
	return o
}

// Bits that a volume's group gets.
const (
	groupWrite = 0o660
	groupRead  = 0o440
)

// setGroup gives a volume, with all that is in it, to the pod's fsGroup. With the policy OnRootMismatch nothing is done if
// the volume's root is as it should be: walking a large volume takes long.
func setGroup(dir string, p *v1.Pod, bits fs.FileMode) error {
	gid := ownerFor(p).gid
	if gid == noID {
		return nil
	}
	sc := p.Spec.SecurityContext
	if sc.FSGroupChangePolicy != nil && *sc.FSGroupChangePolicy == v1.FSGroupChangeOnRootMismatch && rootFits(dir, gid, bits) {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if err := os.Lchown(path, noID, gid); err != nil {
			return fmt.Errorf("fsGroup: %w", err)
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			return nil
		}
		return os.Chmod(path, groupMode(info, bits))
	})
}

// setRootGroup gives an emptyDir to the pod's fsGroup: it is empty when it is made, and what a running pod has put into it since
// stays as the pod wants it.
func setRootGroup(dir string, p *v1.Pod) error {
	gid := ownerFor(p).gid
	if gid == noID || rootFits(dir, gid, groupWrite) {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := os.Chown(dir, noID, gid); err != nil {
		return fmt.Errorf("fsGroup: %w", err)
	}
	return os.Chmod(dir, groupMode(info, groupWrite))
}

func groupMode(info fs.FileInfo, bits fs.FileMode) fs.FileMode {
	mode := info.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSticky) | bits
	if info.IsDir() {
		mode |= fs.ModeSetgid | 0o110
	}
	return mode
}

func rootFits(dir string, gid int, bits fs.FileMode) bool {
	info, err := os.Stat(dir)
	return err == nil && ownerOf(info).gid == gid && info.Mode()&fs.ModeSetgid != 0 && info.Mode()&bits == bits
}
