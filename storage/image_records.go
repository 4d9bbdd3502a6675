package storage

import (
	"encoding/json"
	"errors"
	"fmt"

	cs "github.com/containers/storage"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Images reads all records of images. It is meant for the start: package image keeps what it returns in memory. A
// record that can't be read is logged and left out.
func (s *Store) Images() ([]ImageRecord, error) {
	images, err := s.store.Images()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var records []ImageRecord
	for _, img := range images {
		record, err := s.record(&img)
		if err != nil {
			s.log.Error("image can't be used, pull it again", "image", img.ID, "err", err)
			continue
		}
		records = append(records, record)
	}
	return records, nil
}

// Image reads one record. ErrNotFound if there is none.
func (s *Store) Image(id string) (ImageRecord, error) {
	img, err := s.store.Image(id)
	if errors.Is(err, cs.ErrImageUnknown) {
		return ImageRecord{}, fmt.Errorf("image %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return ImageRecord{}, fmt.Errorf("image %s: %w", id, err)
	}
	record, err := s.record(img)
	if err != nil {
		return ImageRecord{}, fmt.Errorf("image %s: %w", id, err)
	}
	return record, nil
}

func (s *Store) record(img *cs.Image) (ImageRecord, error) {
	config, err := s.readConfig(img.ID)
	if err != nil {
		return ImageRecord{}, err
	}
	var parsed imgspec.Image
	if err := json.Unmarshal(config, &parsed); err != nil {
		return ImageRecord{}, fmt.Errorf("config: %w", err)
	}
	record := ImageRecord{
		ID:             img.ID,
		Names:          img.Names,
		DiffIDs:        parsed.RootFS.DiffIDs,
		Config:         config,
		ManifestDigest: img.Digest,
		Created:        img.Created,
	}
	s.layersMu.RLock()
	defer s.layersMu.RUnlock()
	for _, id := range LayerIDs(parsed.RootFS.DiffIDs) {
		usage, ok := s.layers[id]
		if !ok {
			return ImageRecord{}, fmt.Errorf("layer %s is missing", id)
		}
		record.Bytes += usage.Bytes
	}
	return record, nil
}

// readConfig reads the config of an image, which must have the digest that is the image's ID.
func (s *Store) readConfig(id string) ([]byte, error) {
	config, err := s.store.ImageBigData(id, configKey(id))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if digest.FromBytes(config).Encoded() != id {
		return nil, errors.New("config: it is damaged: its digest is not the image's ID")
	}
	return config, nil
}

// DeleteImage removes an image and the layers that nothing else needs. It is ErrInUse as long as there are root
// filesystems made from it, or holders that have it mounted. It succeeds if there is no such image.
func (s *Store) DeleteImage(id string) error {
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	s.mountsMu.Lock() // no new holder comes meanwhile
	defer s.mountsMu.Unlock()
	for _, m := range s.holders {
		if m.ImageID == id {
			return fmt.Errorf("image %s: mounted for %s: %w", id, m.Holder, ErrInUse)
		}
	}
	return s.deleteImageLocked(id)
}

func (s *Store) deleteImageLocked(id string) error {
	removed, err := s.store.DeleteImage(id, true)
	if errors.Is(err, cs.ErrNotAnImage) || errors.Is(err, cs.ErrImageUnknown) {
		return nil
	}
	if errors.Is(err, cs.ErrImageUsedByContainer) {
		return fmt.Errorf("image %s: %w", id, ErrInUse)
	}
	s.layersMu.Lock()
	for _, layer := range removed {
		delete(s.layers, layer)
	}
	s.layersMu.Unlock()
	if err != nil {
		return fmt.Errorf("image %s: delete: %w", id, err)
	}
	return nil
}
