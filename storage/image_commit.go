package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	cs "github.com/containers/storage"
	graphdriver "github.com/containers/storage/drivers"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// ImageRecord is an image in the store.
type ImageRecord struct {
	// ID is the hex digits of Config's digest.
	ID string
	// Names are fully qualified names with a tag or a digest. A name belongs to one image.
	Names []string
	// DiffIDs are the layers, lowest first.
	DiffIDs []digest.Digest
	// Config and Manifest are the documents as they came. Manifest is for CommitImage only: records that are read
	// leave it empty.
	Config, Manifest []byte
	// ManifestDigest is Manifest's.
	ManifestDigest digest.Digest
	// Created is when the image came into the store.
	Created time.Time
	// Bytes is the unpacked size of all layers. CommitImage ignores it.
	Bytes uint64
}

// LayerIDs returns the IDs under which the layers of an image are in the store: the hex digits of the chain IDs
// (OCI image specification, config.md), so the same layers on top of each other are stored once.
func LayerIDs(diffIDs []digest.Digest) []string {
	chain := identity.ChainIDs(slices.Clone(diffIDs)) // it works in place
	ids := make([]string, len(chain))
	for i, c := range chain {
		ids[i] = c.Encoded()
	}
	return ids
}

// HasLayer says whether a layer is in the store. It takes no lock of containers/storage.
func (s *Store) HasLayer(layerID string) bool {
	s.layersMu.RLock()
	defer s.layersMu.RUnlock()
	_, ok := s.layers[layerID]
	return ok
}

// CommitImage puts an image with its staged layers into the store. staged[i] is the layer of DiffIDs[i], or nil if
// HasLayer said that it is there; ErrLayerGone if it is not any more. An image that exists gets the names as further
// ones; a name that another image has moves. After an error nothing is left of what was not there before.
func (s *Store) CommitImage(img ImageRecord, staged []*StagedLayer) error {
	if len(staged) != len(img.DiffIDs) {
		return fmt.Errorf("image %s: %d staged layers for %d diff IDs", img.ID, len(staged), len(img.DiffIDs))
	}
	s.commitMu.Lock()
	defer s.commitMu.Unlock()
	ids := LayerIDs(img.DiffIDs)
	missing := slices.DeleteFunc(slices.Clone(ids), s.HasLayer)
	flushed, err := s.markUnflushed(missing)
	if err != nil {
		return fmt.Errorf("image %s: %w", img.ID, err)
	}
	var added []string
	parent := ""
	for i, id := range ids {
		if !s.HasLayer(id) {
			if err = s.addLayer(id, parent, staged[i]); err != nil {
				break
			}
			added = append(added, id)
		}
		parent = id
	}
	if err == nil {
		err = s.addImage(img, parent)
	}
	if err != nil {
		for _, id := range slices.Backward(added) {
			err = errors.Join(err, s.deleteLayer(id))
		}
		err = fmt.Errorf("image %s: %w", img.ID, err)
	}
	flushed()
	return err
}

// addLayer puts one staged layer on top of its parent.
func (s *Store) addLayer(id, parent string, staged *StagedLayer) error {
	output := staged.take()
	if output == nil {
		return fmt.Errorf("layer %s: %w", id, ErrLayerGone)
	}
	err := s.inheritImplied(output, parent, staged.implied)
	if err == nil {
		_, err = s.store.ApplyStagedLayer(cs.ApplyStagedLayerOptions{
			ID:          id,
			ParentLayer: parent,
			DiffOutput:  output,
			DiffOptions: &graphdriver.ApplyDiffWithDifferOpts{},
		})
	}
	// Also after a success: the driver moves the files away and leaves the directory that they were in.
	if cleanErr := s.store.CleanupStagedLayer(output); cleanErr != nil && err == nil {
		s.log.Warn("staging directory stays until the next start", "layer", id, "err", cleanErr)
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	s.layersMu.Lock()
	s.layers[id] = factsOf(output.Metadata, output.Size)
	s.layersMu.Unlock()
	return nil
}

// factsOf reads what StageLayer recorded. A layer of another tool has only a size.
func factsOf(metadata string, sizeBytes int64) Usage {
	var facts layerFacts
	if json.Unmarshal([]byte(metadata), &facts) != nil || facts.Inodes == 0 {
		return Usage{Bytes: uint64(max(sizeBytes, 0))}
	}
	return Usage(facts)
}

func (s *Store) deleteLayer(id string) error {
	if err := s.store.DeleteLayer(id); ignoreGone(err) != nil && !errors.Is(err, cs.ErrNotALayer) {
		return fmt.Errorf("delete layer %s: %w", id, err)
	}
	s.layersMu.Lock()
	delete(s.layers, id)
	s.layersMu.Unlock()
	return nil
}

// addImage records the image, or adds the names to the record that is there.
func (s *Store) addImage(img ImageRecord, topLayer string) error {
	_, err := s.store.Image(img.ID)
	created := errors.Is(err, cs.ErrImageUnknown)
	if created {
		_, err = s.store.CreateImage(img.ID, nil, topLayer, "", &cs.ImageOptions{
			CreationDate: img.Created,
			Digest:       img.ManifestDigest,
			BigData: []cs.ImageBigDataOption{
				{Key: configKey(img.ID), Data: img.Config, Digest: digest.FromBytes(img.Config)},
				{Key: cs.ImageDigestBigDataKey, Data: img.Manifest, Digest: img.ManifestDigest},
			},
		})
	}
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	// Names come last: a name that another image had is moved only to an image that is complete.
	if err = s.store.AddNames(img.ID, img.Names); err == nil {
		return nil
	}
	err = fmt.Errorf("names: %w", err)
	if created {
		err = errors.Join(err, s.deleteImageLocked(img.ID))
	}
	return err
}

// configKey is where containers/image's storage transport keeps the config, so that its tools can read this store.
func configKey(id string) string { return digest.NewDigestFromEncoded(digest.SHA256, id).String() }
