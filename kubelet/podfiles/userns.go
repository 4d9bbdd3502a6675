package podfiles

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rangeLength is how many user IDs a pod gets, see KEP-127: all of 16 bits.
const rangeLength = 65536

// UserIDs gives each pod with hostUsers: false a range of user IDs that no other pod on the node has. What it gave is in
// the pod's directory, so it holds over a restart.
type UserIDs struct {
	dir   Dir
	first uint32 // of the IDs that may be given
	count uint32 // of ranges

	mu   sync.Mutex
	used map[uint32]types.UID // by the first ID of a range
}

// NewUserIDs reads what was given before. Ranges begin at 65536: those below are the node's own users.
func NewUserIDs(dir Dir, maxPods int) (*UserIDs, error) {
	u := &UserIDs{dir: dir, first: rangeLength, count: uint32(max(maxPods, 1024)), used: map[uint32]types.UID{}}
	files, err := filepath.Glob(filepath.Join(string(dir), "pods", "*", "userns"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		uid := types.UID(filepath.Base(filepath.Dir(file)))
		first, err := u.read(uid)
		if err != nil {
			return nil, err
		}
		u.used[first] = uid
	}
	return u, nil
}

func (u *UserIDs) file(uid types.UID) string { return filepath.Join(u.dir.Pod(uid), "userns") }

func (u *UserIDs) read(uid types.UID) (first uint32, err error) {
	data, err := os.ReadFile(u.file(uid))
	if err == nil {
		err = json.Unmarshal(data, &first)
	}
	if err != nil {
		return 0, fmt.Errorf("user IDs of pod %s: %w", uid, err)
	}
	return first, nil
}

// Of is the user namespace of a pod: the node's, nil, unless its spec says otherwise. The pod's directory must be there.
func (u *UserIDs) Of(p *v1.Pod) (*cri.UserNamespace, error) {
	if p.Spec.HostUsers == nil || *p.Spec.HostUsers {
		return nil, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	first, err := u.rangeLocked(p.UID)
	if err != nil {
		return nil, err
	}
	ids := []*cri.IDMapping{{HostId: first, ContainerId: 0, Length: rangeLength}}
	return &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}, nil
}

func (u *UserIDs) rangeLocked(uid types.UID) (uint32, error) {
	for first, owner := range u.used {
		if owner == uid {
			return first, nil
		}
	}
	for i := range u.count {
		first := u.first + i*rangeLength
		if _, taken := u.used[first]; taken {
			continue
		}
		if err := os.WriteFile(u.file(uid), fmt.Appendf(nil, "%d", first), 0o600); err != nil {
			return 0, fmt.Errorf("user IDs: %w", err)
		}
		u.used[first] = uid
		return first, nil
	}
	return 0, fmt.Errorf("user IDs: all %d ranges are given to pods; lower maxPods or end some", u.count)
}

// Release takes back what a pod had.
func (u *UserIDs) Release(uid types.UID) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for first, owner := range u.used {
		if owner == uid {
			delete(u.used, first)
		}
	}
	if err := os.Remove(u.file(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("user IDs of pod %s: %w", uid, err)
	}
	return nil
}
