package image

import (
	"context"
	"errors"
	"fmt"
)

// Remove removes the image that name means with all of its tags and digests (CRI RemoveImage since 1.36), and the
// layers that no other image needs. inUse says whether containers use an image: removing such a one is ErrInUse. It
// succeeds if there is no such image.
func (s *Service) Remove(ctx context.Context, name string, inUse func(id string) bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("image %s: %w", clip(name), err)
	}
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	img, err := s.Resolve(name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if inUse != nil && inUse(img.ID) {
		return fmt.Errorf("image %s: %w", img.ID, ErrInUse)
	}
	if err := s.store.DeleteImage(img.ID); err != nil {
		return classify(err)
	}
	if err := s.refreshLocked(img.ID); err != nil {
		return err
	}
	s.log.Info("image removed", "image", clip(name), "id", img.ID)
	return nil
}
