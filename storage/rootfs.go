package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	cs "github.com/containers/storage"
	"github.com/containers/storage/pkg/idtools"
	"github.com/containers/storage/types"
)

// RootfsOptions is what a writable root filesystem is made from.
type RootfsOptions struct {
	// ID is the container's ID and names the root filesystem.
	ID string
	// ImageID is the image's ID: the hex digits of its config digest.
	ImageID string
	// MountLabel is the SELinux label of its files, or "".
	MountLabel string
	// UIDs and GIDs map IDs in the container to IDs on the host; empty outside user namespaces.
	UIDs, GIDs []IDMap
}

// IDMap maps Size IDs from ContainerID on to IDs from HostID on.
type IDMap struct{ ContainerID, HostID, Size uint32 }

// validID is what may become a directory name.
var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// CreateRootfs makes the writable layer of a container and mounts it, and returns the mount point. A repeat with the
// same ID returns the same mount point. ErrNotFound if there is no such image.
//
// It costs three small synced writes, of the records of containers/storage, and one mount.
func (s *Store) CreateRootfs(ctx context.Context, o RootfsOptions) (path string, err error) {
	if !validID.MatchString(o.ID) {
		return "", fmt.Errorf("root filesystem %q: ID must match %s", o.ID, validID)
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("root filesystem %s: %w", o.ID, err)
	}
	_, err = s.store.CreateContainer(o.ID, nil, o.ImageID, o.ID, "", containerOptions(o))
	switch {
	case errors.Is(err, cs.ErrDuplicateID):
		return s.repeatRootfs(ctx, o)
	case errors.Is(err, cs.ErrImageUnknown):
		return "", fmt.Errorf("root filesystem %s: image %s: %w", o.ID, o.ImageID, ErrNotFound)
	case err != nil:
		return "", fmt.Errorf("root filesystem %s: %w", o.ID, err)
	}
	path, err = s.store.Mount(o.ID, o.MountLabel)
	if err == nil && len(o.UIDs) > 0 {
		// The root of the user namespace must get through. The driver gives it the directory only where it can't map
		// the IDs of the mount.
		err = os.Chmod(filepath.Dir(path), 0o711)
	}
	if err != nil {
		err = fmt.Errorf("root filesystem %s: mount: %w", o.ID, err)
		return "", errors.Join(err, s.DeleteRootfs(context.WithoutCancel(ctx), o.ID))
	}
	return path, nil
}

// repeatRootfs answers a create of what is there.
func (s *Store) repeatRootfs(ctx context.Context, o RootfsOptions) (string, error) {
	have, err := s.store.Container(o.ID)
	if err != nil {
		return "", fmt.Errorf("root filesystem %s: a layer of that ID exists: %w", o.ID, err)
	}
	if have.ImageID != o.ImageID {
		return "", fmt.Errorf("root filesystem %s: made from image %s, not %s", o.ID, have.ImageID, o.ImageID)
	}
	return s.MountRootfs(ctx, o.ID)
}

func containerOptions(o RootfsOptions) *cs.ContainerOptions {
	opts := &cs.ContainerOptions{IDMappingOptions: types.IDMappingOptions{
		HostUIDMapping: len(o.UIDs) == 0,
		HostGIDMapping: len(o.GIDs) == 0,
		UIDMap:         idMaps(o.UIDs),
		GIDMap:         idMaps(o.GIDs),
	}}
	if o.MountLabel == "" {
		opts.LabelOpts = []string{"disable"} // without this containers/storage would choose labels of its own
		return opts
	}
	// containers/storage takes both labels or none; it uses the mount label and only records the other.
	opts.Flags = map[string]any{"MountLabel": o.MountLabel, "ProcessLabel": o.MountLabel}
	return opts
}

func idMaps(in []IDMap) []idtools.IDMap {
	var out []idtools.IDMap
	for _, m := range in {
		out = append(out, idtools.IDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

// MountRootfs mounts the root filesystem of an existing container again, for example after a reboot. It returns the
// same path as before, and changes nothing if it is mounted. ErrNotFound if there is none.
func (s *Store) MountRootfs(ctx context.Context, id string) (path string, err error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("root filesystem %s: %w", id, err)
	}
	there, err := s.isRootfs(id)
	if err == nil && !there {
		err = ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("root filesystem %s: %w", id, err)
	}
	// "" takes the label that the layer was made with. A mount that exists is only counted once more, which
	// UnmountRootfs does not care about.
	path, err = s.store.Mount(id, "")
	if err != nil {
		return "", fmt.Errorf("root filesystem %s: mount: %w", id, err)
	}
	return path, nil
}

// isRootfs tells whether there is one of that ID. That the records can't be read is an error and not a no: who takes it
// for one forgets a root filesystem that is there.
func (s *Store) isRootfs(id string) (bool, error) {
	c, err := s.store.Container(id)
	if errors.Is(err, cs.ErrContainerUnknown) {
		return false, nil
	}
	return err == nil && c.ID == id, err
}

// UnmountRootfs unmounts and keeps the layer. It succeeds if nothing is mounted. Processes that still use the mount
// keep it until they end.
func (s *Store) UnmountRootfs(_ context.Context, id string) error {
	there, err := s.isRootfs(id)
	if err != nil {
		return fmt.Errorf("root filesystem %s: %w", id, err)
	}
	if !there {
		return nil
	}
	mounted, err := s.store.Mounted(id)
	if err != nil || mounted == 0 {
		return ignoreGone(err)
	}
	if _, err := s.store.Unmount(id, true); ignoreGone(err) != nil {
		return fmt.Errorf("root filesystem %s: unmount: %w", id, err)
	}
	return nil
}

// DeleteRootfs unmounts and deletes. It succeeds if there is nothing to delete.
func (s *Store) DeleteRootfs(ctx context.Context, id string) error {
	there, err := s.isRootfs(id)
	if err != nil {
		return fmt.Errorf("root filesystem %s: %w", id, err)
	}
	if !there {
		return nil
	}
	if err := s.UnmountRootfs(ctx, id); err != nil {
		return err
	}
	if err := s.store.DeleteContainer(id); ignoreGone(err) != nil {
		return fmt.Errorf("root filesystem %s: delete: %w", id, err)
	}
	s.usage.forget(id)
	return nil
}

// ignoreGone turns "there is no such thing" into success, for calls that converge.
func ignoreGone(err error) error {
	for _, gone := range []error{cs.ErrContainerUnknown, cs.ErrNotAContainer, cs.ErrLayerUnknown, cs.ErrLayerNotMounted} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}

// ListRootfs returns the IDs of all root filesystems, for reconciliation at start.
func (s *Store) ListRootfs() ([]string, error) {
	containers, err := s.store.Containers()
	if err != nil {
		return nil, fmt.Errorf("list root filesystems: %w", err)
	}
	ids := make([]string, 0, len(containers))
	for _, c := range containers {
		ids = append(ids, c.ID)
	}
	return ids, nil
}

// RootfsUpperDir is the directory that holds what the container wrote; "" if the driver has none. ErrNotFound if
// there is no such container.
func (s *Store) RootfsUpperDir(id string) (string, error) {
	if !validID.MatchString(id) || !s.driver.Exists(id) {
		return "", fmt.Errorf("root filesystem %s: %w", id, ErrNotFound)
	}
	facts, err := s.driver.Metadata(id)
	if err != nil {
		return "", fmt.Errorf("root filesystem %s: %w", id, err)
	}
	return facts["UpperDir"], nil
}
