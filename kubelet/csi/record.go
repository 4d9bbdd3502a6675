package csi

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/orlop/orlop/kubelet/mount"
)

// record is what must be known of a volume to undo it, as kubelet writes it beside the volume. Kubelet takes all values for
// strings and passes over names that it does not know: the last two are ours.
type record struct {
	Name       string                        `json:"specVolID,omitempty"`
	Handle     string                        `json:"volumeHandle"`
	Driver     string                        `json:"driverName"`
	Node       string                        `json:"nodeName,omitempty"`
	Attachment string                        `json:"attachmentID,omitempty"`
	Lifecycle  storagev1.VolumeLifecycleMode `json:"volumeLifecycleMode,omitempty"`
	SELinux    string                        `json:"seLinuxMountContext,omitempty"`

	State  state `json:"state,omitempty"`
	Attach yesNo `json:"attach,omitempty"` // whether the control plane attaches the volume
}

// state is how far a volume has come.
//
//	wanted ──▶ asked ──▶ done
//	   ▲─────────┘ the driver refused
type state string

const (
	wanted state = "wanted" // the driver was asked for nothing
	asked  state = "asked"  // the driver may have done something
	done   state = "done"
	// A record of kubelet's has none, and may mean any of them.
)

type yesNo string

const (
	yes yesNo = "yes"
	no  yesNo = "no"
)

func (r record) id() volumeID { return volumeID{r.Driver, r.Handle} }

// attached is true for a volume that is, or may be, attached by the control plane.
func (r record) attached() bool {
	return r.Attach != no && r.Lifecycle != storagev1.VolumeLifecycleEphemeral
}

const recordName = "vol_data.json"

// save writes a record so that it is whole, or not there, whenever the machine stops.
func (r record) save(dir string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	stage := filepath.Join(dir, "."+recordName)
	if err := writeSynced(stage, append(data, '\n')); err != nil {
		return fmt.Errorf("record of a volume: %w", err)
	}
	return os.Rename(stage, filepath.Join(dir, recordName))
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// load reads the record of a directory; it is fs.ErrNotExist where there is none.
func load(dir string) (record, error) {
	var r record
	path := filepath.Join(dir, recordName)
	data, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	err = json.Unmarshal(data, &r)
	if err == nil && (r.Driver == "" || r.Handle == "") {
		err = errors.New("it has no driverName or no volumeHandle")
	}
	if err == nil {
		return r, nil
	}
	if nothingMounted(dir) {
		return r, fmt.Errorf("%s: %w: %w", path, err, fs.ErrNotExist)
	}
	return r, fmt.Errorf("%s: %w; unmount the volume by hand and remove the file", path, err)
}

// nothingMounted tells that a record in vain would have nothing to tell: a machine that lost its power may have written half
// of one, and has no mounts after that.
func nothingMounted(dir string) bool {
	for _, name := range []string{mountName, globalMountName} {
		if mounted, err := mount.Mounted(filepath.Join(dir, name)); err != nil || mounted {
			return false
		}
	}
	return true
}

// drop removes a record, and its directory. Nothing else is removed: what else is there is somebody's data.
func drop(dir string) error {
	for _, name := range []string{filepath.Join(dir, "."+recordName), filepath.Join(dir, recordName), dir} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// recall learns from the records on disk what is in use.
func (m *Manager) recall() error {
	return m.eachRecord(func(_ string, r record) {
		if r.attached() {
			m.inUse[r.id()] = true
		}
	})
}

// eachRecord visits all records of this node, of pods and of staged volumes. What can't be read is told, and passed over.
func (m *Manager) eachRecord(visit func(dir string, r record)) error {
	for _, pattern := range []string{
		filepath.Join(m.cfg.Root, "pods", "*", "volumes", pluginName, "*", recordName),
		filepath.Join(m.stageRoot(), "*", "*", recordName),
		filepath.Join(m.deviceDir("*"), recordName),
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range files {
			dir := filepath.Dir(file)
			r, err := load(dir)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it went while we looked
			}
			if err != nil {
				m.log.Warn("record of a volume not understood", "err", err)
				continue
			}
			visit(dir, r)
		}
	}
	return nil
}

// users are the pods that have a record of a volume: true for those that may have the volume, false for those that want it.
func (m *Manager) users(v volumeID) (map[types.UID]bool, error) {
	out := map[types.UID]bool{}
	files, err := filepath.Glob(filepath.Join(m.cfg.Root, "pods", "*", "volumes", pluginName, "*", recordName))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		r, err := load(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err // it may be of this volume
		}
		if r.id() == v {
			out[podOf(dir)] = r.State != wanted
		}
	}
	return out, m.deviceUsers(v, out)
}

// podOf is the pod of pods/UID/volumes/PLUGIN/NAME, or pods/UID/volumeDevices/PLUGIN/NAME.
func podOf(path string) types.UID {
	return types.UID(filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(path)))))
}

func sha256Hex(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

// attachmentName is that of a VolumeAttachment, as the control plane makes it.
func attachmentName(v volumeID, node string) string {
	return "csi-" + sha256Hex(v.handle+v.driver+node)
}

// inlineHandle is that of a volume which a pod describes itself.
func inlineHandle(uid types.UID, name string) string { return "csi-" + sha256Hex(string(uid)+name) }

func sortedNames(volumes map[volumeID]bool) []v1.UniqueVolumeName {
	var out []v1.UniqueVolumeName
	for v := range volumes {
		out = append(out, v.unique())
	}
	slices.Sort(out)
	return out
}
