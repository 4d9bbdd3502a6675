// Package storage holds image layers and the writable root filesystems of containers, in containers/storage with
// the overlay driver. Nothing outside storage and image imports containers/storage.
package storage

import "context"

// Config says where layers live.
type Config struct {
	// Root is the directory of layers, images and their metadata. It must be on a file system that overlayfs
	// takes as an upper directory.
	Root string
	// RunRoot is the directory of mounts and locks; it is emptied by a reboot.
	RunRoot string
	// DriverOptions are passed to the overlay driver as they are, for example "overlay.mountopt=nodev".
	DriverOptions []string
}

// Store is safe for concurrent use.
type Store struct{}

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

// Usage is disk space in use.
type Usage struct {
	Bytes  uint64
	Inodes uint64
}

func Open(cfg Config) (*Store, error) { panic("storage: owner fills this in") }

// Close releases what Open took; it unmounts nothing.
func (s *Store) Close() error { panic("todo") }

// CreateRootfs makes the writable layer of a container and mounts it, and returns the mount point. A repeat with the
// same ID returns the same mount point.
func (s *Store) CreateRootfs(ctx context.Context, o RootfsOptions) (path string, err error) {
	panic("todo")
}

// MountRootfs mounts the root filesystem of an existing container again, for example after a reboot.
func (s *Store) MountRootfs(ctx context.Context, id string) (path string, err error) { panic("todo") }

// UnmountRootfs unmounts and keeps the layer. It succeeds if nothing is mounted.
func (s *Store) UnmountRootfs(ctx context.Context, id string) error { panic("todo") }

// DeleteRootfs unmounts and deletes. It succeeds if there is nothing to delete.
func (s *Store) DeleteRootfs(ctx context.Context, id string) error { panic("todo") }

// ListRootfs returns the IDs of all root filesystems, for reconciliation at start.
func (s *Store) ListRootfs() ([]string, error) { panic("todo") }

// RootfsUsage is the space that a container wrote.
func (s *Store) RootfsUsage(ctx context.Context, id string) (Usage, error) { panic("todo") }

// RootfsUpperDir is the directory that holds what the container wrote; "" if the driver has none.
func (s *Store) RootfsUpperDir(id string) (string, error) { panic("todo") }

// MountImage mounts an image read-only for use as a volume, and returns the mount point. Each holder (a container's
// ID and mount index) is counted once; the last UnmountImage unmounts.
func (s *Store) MountImage(ctx context.Context, imageID, holder string) (path string, err error) {
	panic("todo")
}

// UnmountImage gives up what holder mounted. It succeeds if holder mounted nothing.
func (s *Store) UnmountImage(ctx context.Context, holder string) error { panic("todo") }

// FilesystemUsage is the space that all layers and images take, and the directory they are in.
func (s *Store) FilesystemUsage(ctx context.Context) (path string, u Usage, err error) { panic("todo") }
