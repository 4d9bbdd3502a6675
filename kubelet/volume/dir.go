package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/orlop/orlop/kubelet/mount"
)

// Kinds of directories.
const (
	emptyDirKind  = "empty-dir"
	configMapKind = "configmap"
	secretKind    = "secret"
	downwardKind  = "downward-api"
	projectedKind = "projected"
	localKind     = "local-volume"
)

// emptyDir is a directory for all users, on disk or in memory, that lives as long as the pod.
func (m *Manager) emptyDir(p *v1.Pod, v *v1.Volume) (made, error) {
	dir := m.dir(p.UID, emptyDirKind, v.Name)
	if err := makeDir(dir, 0o777); err != nil {
		return made{}, err
	}
	done := made{kind: emptyDirKind, path: dir, relabel: true}
	fstype, options := "", ""
	switch medium := v.EmptyDir.Medium; {
	case medium == v1.StorageMediumDefault:
		return done, setRootGroup(dir, p)
	case medium == v1.StorageMediumMemory:
		fstype, options = "tmpfs", memoryOptions(p, v.EmptyDir.SizeLimit)
	case strings.HasPrefix(string(medium), string(v1.StorageMediumHugePages)):
		size, err := hugePageSize(p, medium)
		if err != nil {
			return made{}, err
		}
		fstype, options = "hugetlbfs", "mode=0777,pagesize="+size
	default:
		return made{}, fmt.Errorf("emptyDir.medium %q: unknown; write Memory, HugePages or nothing", medium)
	}
	if err := mountOnce(dir, fstype, options); err != nil {
		return made{}, err
	}
	return done, setRootGroup(dir, p)
}

// memoryOptions limit a tmpfs to what the volume, and the pod's memory, may take (KEP-1967).
func memoryOptions(p *v1.Pod, limit *resource.Quantity) string {
	size := int64(0)
	limits := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})
	if q := limits[v1.ResourceMemory]; !q.IsZero() {
		size = q.Value()
	}
	if limit != nil && limit.Value() > 0 && (size == 0 || limit.Value() < size) {
		size = limit.Value()
	}
	options := "mode=0777"
	if size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	return options
}

// hugePageSize is what the medium says, or else the one size that the pod asks for.
func hugePageSize(p *v1.Pod, medium v1.StorageMedium) (string, error) {
	size := strings.TrimPrefix(string(medium), "HugePages-")
	if medium == v1.StorageMediumHugePages {
		found := map[string]bool{}
		for name := range resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{}) {
			if page, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix); ok {
				found[page], size = true, page
			}
		}
		if len(found) != 1 {
			return "", fmt.Errorf("emptyDir.medium HugePages: the pod asks for %d sizes of huge pages; write the size, as in HugePages-2Mi", len(found))
		}
	}
	q, err := resource.ParseQuantity(size)
	if err != nil {
		return "", fmt.Errorf("emptyDir.medium %s: %w", medium, err)
	}
	return fmt.Sprint(q.Value()), nil
}

// makeDir makes a directory with a mode that no umask narrows.
func makeDir(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return err
	}
	if err := os.Mkdir(dir, mode); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return os.Chmod(dir, mode)
}

// mountOnce mounts a file system that is not there yet.
func mountOnce(dir, fstype, options string) error {
	mounted, err := mount.Mounted(dir)
	if err != nil || mounted {
		return err
	}
	if err := unix.Mount(fstype, dir, fstype, unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", fstype, dir, err)
	}
	return nil
}

// hostPath is a path of the node, of the type that the pod expects.
func (m *Manager) hostPath(h *v1.HostPathVolumeSource) (made, error) {
	kind := v1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	if err := checkHostPath(h.Path, kind); err != nil {
		return made{}, err
	}
	return made{path: h.Path}, nil
}

func checkHostPath(path string, kind v1.HostPathType) error {
	info, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case kind == v1.HostPathUnset:
		return nil
	case kind == v1.HostPathDirectoryOrCreate && missing:
		return os.MkdirAll(path, 0o755)
	case kind == v1.HostPathFileOrCreate && missing:
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("hostPath type check failed: %w", err)
		}
		return f.Close()
	case err != nil:
		return fmt.Errorf("hostPath type check failed: %s is not a %s: %w", path, kindNames[kind], err)
	}
	mode := info.Mode()
	ok := false
	switch kind {
	case v1.HostPathDirectory, v1.HostPathDirectoryOrCreate:
		ok = mode.IsDir()
	case v1.HostPathFile, v1.HostPathFileOrCreate:
		ok = mode.IsRegular()
	case v1.HostPathSocket:
		ok = mode&fs.ModeSocket != 0
	case v1.HostPathCharDev:
		ok = mode&fs.ModeCharDevice != 0
	case v1.HostPathBlockDev:
		ok = mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
	default:
		return fmt.Errorf("hostPath.type %q: unknown; see the API's documentation", kind)
	}
	if !ok {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", path, kindNames[kind])
	}
	return nil
}

var kindNames = map[v1.HostPathType]string{
	v1.HostPathDirectory: "directory", v1.HostPathDirectoryOrCreate: "directory", v1.HostPathFile: "file", v1.HostPathFileOrCreate: "file",
	v1.HostPathSocket: "socket file", v1.HostPathCharDev: "character device", v1.HostPathBlockDev: "block device",
}
