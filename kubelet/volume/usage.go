package volume

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// usageAge is how old a measurement may be: walking a large volume takes long (volumeStatsAggPeriod's default).
const usageAge = time.Minute

// measured is what volumes hold, by the volume's path.
type measured struct {
	mu    sync.Mutex
	known map[string]stats.FsStats
}

// Usage is what the volumes of a pod hold. Those that are not on the node, or can't be read now, are left out.
func (m *Manager) Usage(uid types.UID) []stats.VolumeStats {
	m.mu.Lock()
	volumes := map[string]made{}
	for name, v := range m.pods[uid] {
		volumes[name] = v
	}
	m.mu.Unlock()
	var out []stats.VolumeStats
	for name, v := range volumes {
		if v.kind == "" || (v.kind == localKind && v.device != "") { // not the pod's own, or not a file system
			continue
		}
		fs, ok := m.usageOf(uid, v)
		if !ok {
			continue
		}
		out = append(out, stats.VolumeStats{Name: name, PVCRef: v.claim, FsStats: fs})
	}
	return out
}

// usageOf is what one volume holds: as its driver told, or as it was counted.
func (m *Manager) usageOf(uid types.UID, v made) (stats.FsStats, bool) {
	switch v.kind {
	case csiKind:
		return m.cfg.CSI.Stats(uid, v.name)
	case localKind:
		fs, err := wholeFS(v.path)
		return fs, err == nil
	}
	fs, err := m.usage.of(v.path)
	return fs, err == nil
}

// Used is what one of the pod's own volumes holds in bytes, as of now.
func (m *Manager) Used(uid types.UID, name string) (int64, error) {
	v, ok := m.get(uid, name)
	if !ok || v.kind == "" {
		return 0, fmt.Errorf("volume %s: the pod has none of its own by this name", name)
	}
	bytes, _, err := count(v.path)
	return int64(bytes), err
}

func (u *measured) of(path string) (stats.FsStats, error) {
	u.mu.Lock()
	known, ok := u.known[path]
	u.mu.Unlock()
	if ok && time.Since(known.Time.Time) < usageAge {
		return known, nil
	}
	bytes, inodes, err := count(path)
	if err != nil {
		return stats.FsStats{}, err
	}
	fs, err := wholeFS(path)
	if err != nil {
		return stats.FsStats{}, err
	}
	fs.UsedBytes, fs.InodesUsed = &bytes, &inodes
	u.mu.Lock()
	u.known[path] = fs
	u.mu.Unlock()
	return fs, nil
}

// wholeFS is what the file system at a path holds. A local volume is taken for all of its file system, as kubelet has it:
// usually it is, and to walk it would take long.
func wholeFS(path string) (stats.FsStats, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return stats.FsStats{}, err
	}
	size := uint64(st.Bsize)
	return stats.FsStats{
		Time: metav1.Now(), UsedBytes: new((st.Blocks - st.Bfree) * size), InodesUsed: new(st.Files - st.Ffree),
		AvailableBytes: new(st.Bavail * size), CapacityBytes: new(st.Blocks * size), Inodes: new(st.Files), InodesFree: new(st.Ffree),
	}, nil
}

// forget drops what was measured below a directory.
func (u *measured) forget(dir string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for path := range u.known {
		if rel, err := filepath.Rel(dir, path); err == nil && filepath.IsLocal(rel) {
			delete(u.known, path)
		}
	}
}

// count adds up what is below a directory as du(1) does: blocks, and each file with several names once.
func count(dir string) (bytes, inodes uint64, err error) {
	seen := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			if path == dir {
				return err
			}
			return nil // it went while we walked
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || (st.Nlink > 1 && !e.IsDir() && seen[st.Ino]) {
			return nil
		}
		seen[st.Ino] = st.Nlink > 1
		bytes += uint64(st.Blocks) * 512
		inodes++
		return nil
	})
	return bytes, inodes, err
}
