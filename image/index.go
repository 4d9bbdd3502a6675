package image

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/storage"
)

// index is a snapshot of all images. It never changes; a new one takes its place.
type index struct {
	byID   map[string]*Image
	byName map[string]*Image
	list   []*Image // sorted by ID
}

func newIndex(images map[string]*Image) *index {
	x := &index{byID: images, byName: map[string]*Image{}, list: slices.Collect(maps.Values(images))}
	slices.SortFunc(x.list, func(a, b *Image) int { return cmp.Compare(a.ID, b.ID) })
	for _, img := range x.list {
		for _, n := range slices.Concat(img.RepoTags, img.RepoDigests) {
			x.byName[n] = img
		}
	}
	return x
}

// List returns all images; with a name, only the one that the name means. It takes no lock and reads no disk.
func (s *Service) List(name string) ([]*Image, error) {
	if name == "" {
		return s.index.Load().list, nil
	}
	img, err := s.Resolve(name)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []*Image{img}, nil
}

// idPrefix is what may be an abbreviated ID. It may be a name as well; an image of that name comes first.
var idPrefix = regexp.MustCompile(`^[0-9a-f]{4,64}$`)

// Resolve finds an image by ID, unique ID prefix, tag, or digest reference. ErrNotFound if there is none,
// ErrInvalidName if name can't be any of these.
func (s *Service) Resolve(name string) (*Image, error) {
	return s.index.Load().resolve(name)
}

func (x *index) resolve(name string) (*Image, error) {
	id := strings.TrimPrefix(name, "sha256:")
	if img, ok := x.byID[id]; ok {
		return img, nil
	}
	named, err := parseName(name)
	if err == nil {
		if img, ok := x.byName[named.String()]; ok {
			return img, nil
		}
	}
	if idPrefix.MatchString(id) {
		return x.byPrefix(id)
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("image %s: %w", clip(name), ErrNotFound)
}

func (x *index) byPrefix(prefix string) (*Image, error) {
	i, _ := slices.BinarySearchFunc(x.list, prefix, func(img *Image, p string) int { return cmp.Compare(img.ID, p) })
	if i == len(x.list) || !strings.HasPrefix(x.list[i].ID, prefix) {
		return nil, fmt.Errorf("image %s: %w", prefix, ErrNotFound)
	}
	if i+1 < len(x.list) && strings.HasPrefix(x.list[i+1].ID, prefix) {
		return nil, fmt.Errorf("image %s: %w: several IDs begin so, give more digits", prefix, ErrNotFound)
	}
	return x.list[i], nil
}

// refreshLocked reads one image's record again and puts a new snapshot in place; an image that has gone leaves it.
// Names that moved to this image leave the others.
func (s *Service) refreshLocked(id string) error {
	images := maps.Clone(s.index.Load().byID)
	record, err := s.store.Image(id)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		delete(images, id)
	case err != nil:
		return err
	default:
		img, err := s.fromRecord(record)
		if err != nil {
			return err
		}
		s.takeNames(images, img)
		images[id] = img
	}
	s.index.Store(newIndex(images))
	return nil
}

// takeNames takes the names of one image from all others.
func (s *Service) takeNames(images map[string]*Image, owner *Image) {
	owned := func(name string) bool {
		return slices.Contains(owner.RepoTags, name) || slices.Contains(owner.RepoDigests, name)
	}
	for id, img := range images {
		if id == owner.ID || !slices.ContainsFunc(slices.Concat(img.RepoTags, img.RepoDigests), owned) {
			continue
		}
		changed := *img
		changed.RepoTags = slices.DeleteFunc(slices.Clone(img.RepoTags), owned)
		changed.RepoDigests = slices.DeleteFunc(slices.Clone(img.RepoDigests), owned)
		changed.Pinned = pinned(s.pins, slices.Concat(changed.RepoTags, changed.RepoDigests))
		images[id] = &changed
	}
}

func (s *Service) fromRecord(r storage.ImageRecord) (*Image, error) {
	var config imgspec.Image
	if err := json.Unmarshal(r.Config, &config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	img := &Image{
		ID:             r.ID,
		SizeBytes:      r.Bytes + uint64(len(r.Config)),
		Config:         config.Config,
		Pinned:         pinned(s.pins, r.Names),
		Architecture:   config.Architecture,
		OS:             config.OS,
		Author:         config.Author,
		PulledAt:       r.Created,
		ManifestDigest: r.ManifestDigest.String(),
	}
	img.RepoTags, img.RepoDigests = splitNames(r.Names)
	if config.Created != nil {
		img.Created = *config.Created
	}
	for _, d := range r.DiffIDs {
		img.Layers = append(img.Layers, d.String())
	}
	return img, nil
}
