package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	cs "github.com/containers/storage"
)

// imageMount is one holder's claim on a mounted image, as kept in RunRoot: mounts and claims end together, with the
// machine. It is written before the mount and removed before the last unmount, so that a crash in between leaves a
// claim without a mount (MountImage repeats) or a mount without a claim (the next last unmount ends it).
type imageMount struct {
	Holder  string
	ImageID string
	// Layer is what is mounted. Two images may have the same top layer, and then share the mount.
	Layer string
}

// MountImage mounts an image read-only for use as a volume, and returns the mount point. Each holder (a container's
// ID and mount index) is counted once; the last UnmountImage unmounts. All holders share what the first one mounted, so
// mountLabel, the SELinux label of the files or "", must be one that they all may read. ErrNotFound if there is no such
// image.
func (s *Store) MountImage(ctx context.Context, imageID, holder, mountLabel string) (path string, err error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("image volume %s: %w", imageID, err)
	}
	img, err := s.store.Image(imageID)
	if errors.Is(err, cs.ErrImageUnknown) {
		return "", fmt.Errorf("image volume %s: %w", imageID, ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("image volume %s: %w", imageID, err)
	}
	if img.TopLayer == "" {
		return "", fmt.Errorf("image volume %s: the image has no layers", imageID)
	}
	s.mountsMu.Lock()
	defer s.mountsMu.Unlock()
	if have, ok := s.holders[holder]; ok && have.Layer != img.TopLayer {
		return "", fmt.Errorf("image volume %s: holder %s has image %s mounted", imageID, holder, have.ImageID)
	}
	if err := s.addHolderLocked(imageMount{holder, img.ID, img.TopLayer}); err != nil {
		return "", fmt.Errorf("image volume %s: %w", imageID, err)
	}
	path, err = s.store.MountImage(img.ID, nil, mountLabel)
	if err != nil {
		err = fmt.Errorf("image volume %s: mount: %w", imageID, err)
		return "", errors.Join(err, s.removeHolderLocked(holder))
	}
	return path, nil
}

// UnmountImage gives up what holder mounted. It succeeds if holder mounted nothing.
func (s *Store) UnmountImage(_ context.Context, holder string) error {
	s.mountsMu.Lock()
	defer s.mountsMu.Unlock()
	have, ok := s.holders[holder]
	if !ok {
		return nil
	}
	shared := false
	for other, m := range s.holders {
		shared = shared || (other != holder && m.Layer == have.Layer)
	}
	if !shared {
		if _, err := s.store.Unmount(have.Layer, true); ignoreGone(err) != nil {
			return fmt.Errorf("image volume %s: unmount: %w", have.ImageID, err)
		}
	}
	return s.removeHolderLocked(holder)
}

func (s *Store) holdersDir() string { return filepath.Join(s.cfg.RunRoot, "image-mounts") }

// holderFile is named by a hash because holders may have any characters.
func (s *Store) holderFile(holder string) string {
	sum := sha256.Sum256([]byte(holder))
	return filepath.Join(s.holdersDir(), hex.EncodeToString(sum[:])+".json")
}

func (s *Store) addHolderLocked(m imageMount) error {
	if _, ok := s.holders[m.Holder]; ok {
		return nil
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	file := s.holderFile(m.Holder)
	// Not synced: it need not outlive a power cut, only the daemon.
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	s.holders[m.Holder] = m
	return nil
}

func (s *Store) removeHolderLocked(holder string) error {
	if err := os.Remove(s.holderFile(holder)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	delete(s.holders, holder)
	return nil
}

// loadHolders reads the claims that the last daemon left.
func (s *Store) loadHolders() error {
	s.mountsMu.Lock()
	defer s.mountsMu.Unlock()
	s.holders = map[string]imageMount{}
	if err := os.MkdirAll(s.holdersDir(), 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.holdersDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		file := filepath.Join(s.holdersDir(), e.Name())
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var m imageMount
		if json.Unmarshal(data, &m) != nil || m.Holder == "" || s.holderFile(m.Holder) != file {
			s.log.Warn("removed an unreadable claim on an image mount", "file", e.Name())
			os.Remove(file)
			continue
		}
		s.holders[m.Holder] = m
	}
	return nil
}
