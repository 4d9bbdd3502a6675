package storage

import (
	"errors"
	"fmt"

	cs "github.com/containers/storage"
)

// repair makes a store whole that a crash, a power cut or a meddler left half: it removes layers whose files are or
// may be gone, the images and unmounted root filesystems that stand on them, and layers that nothing needs. It runs
// in Open, when nobody else uses the store, and refuses to start for none of this.
func (s *Store) repair() error {
	lost, notes, err := s.unflushed()
	if err != nil {
		return err
	}
	layers, err := s.store.Layers()
	if err != nil {
		return err
	}
	tree := newLayerTree(layers)
	for _, layer := range layers {
		if !s.driver.Exists(layer.ID) {
			lost[layer.ID] = true
		}
	}
	tree.spread(lost)
	if err := s.dropContainers(lost); err != nil {
		return err
	}
	if err := s.dropImages(lost); err != nil {
		return err
	}
	if err := s.dropOrphans(tree, lost); err != nil {
		return err
	}
	if err := s.loadLayers(); err != nil {
		return err
	}
	if len(notes) > 0 {
		s.background.Go(func() { s.flushAll(notes) })
	}
	return nil
}

func (s *Store) flushAll(notes []string) {
	for _, note := range notes {
		if err := s.flush(note); err != nil {
			s.log.Warn("layers are not flushed to disk yet", "err", err)
		}
	}
}

// layerTree is which layer stands on which.
type layerTree struct {
	parent   map[string]string
	children map[string][]string
}

func newLayerTree(layers []cs.Layer) *layerTree {
	t := &layerTree{map[string]string{}, map[string][]string{}}
	for _, l := range layers {
		t.parent[l.ID] = l.Parent
		if l.Parent != "" {
			t.children[l.Parent] = append(t.children[l.Parent], l.ID)
		}
	}
	return t
}

// spread adds to a set all layers that stand on one of it. A layer whose parent has no record is one, too.
func (t *layerTree) spread(lost map[string]bool) {
	for id, parent := range t.parent {
		if _, known := t.parent[parent]; parent != "" && !known {
			lost[id] = true
		}
	}
	var mark func(id string)
	mark = func(id string) {
		for _, child := range t.children[id] {
			if !lost[child] {
				lost[child] = true
				mark(child)
			}
		}
	}
	for id := range lost {
		mark(id)
	}
}

// dropContainers deletes root filesystems on lost layers. One that is mounted works, whatever the records say.
func (s *Store) dropContainers(lost map[string]bool) error {
	containers, err := s.store.Containers()
	if err != nil {
		return err
	}
	for _, c := range containers {
		if !lost[c.LayerID] {
			continue
		}
		if n, err := s.store.Mounted(c.LayerID); err == nil && n > 0 {
			s.log.Warn("root filesystem stands on a damaged layer", "container", c.ID)
			continue
		}
		if err := s.store.DeleteContainer(c.ID); ignoreGone(err) != nil {
			return fmt.Errorf("root filesystem %s: %w", c.ID, err)
		}
		s.log.Warn("removed a root filesystem on a damaged layer", "container", c.ID)
	}
	return nil
}

// dropImages deletes images on lost layers, and such whose config is lost: they are pulled again when needed.
func (s *Store) dropImages(lost map[string]bool) error {
	images, err := s.store.Images()
	if err != nil {
		return err
	}
	for _, img := range images {
		_, configErr := s.readConfig(img.ID)
		if configErr == nil && !lost[img.TopLayer] {
			continue
		}
		if _, err := s.store.DeleteImage(img.ID, true); err != nil {
			s.log.Error("damaged image can't be removed", "image", img.ID, "err", err)
			continue
		}
		s.log.Warn("removed a damaged image, pull it again", "image", img.ID, "names", img.Names)
	}
	return nil
}

// dropOrphans deletes layers that no image and no container needs, and lost ones, from the leaves down.
func (s *Store) dropOrphans(tree *layerTree, lost map[string]bool) error {
	needed, err := s.neededLayers(tree)
	if err != nil {
		return err
	}
	var drop func(id string)
	drop = func(id string) {
		for _, child := range tree.children[id] {
			drop(child)
		}
		if needed[id] {
			return
		}
		err := s.store.DeleteLayer(id)
		if ignoreGone(err) != nil && !errors.Is(err, cs.ErrNotALayer) {
			s.log.Error("unused layer can't be removed", "layer", id, "lost", lost[id], "err", err)
		}
	}
	for id, parent := range tree.parent {
		if _, known := tree.parent[parent]; !known {
			drop(id)
		}
	}
	return nil
}

func (s *Store) neededLayers(tree *layerTree) (map[string]bool, error) {
	needed := map[string]bool{}
	need := func(id string) {
		for ; id != "" && !needed[id]; id = tree.parent[id] {
			needed[id] = true
		}
	}
	images, err := s.store.Images()
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		need(img.TopLayer)
		for _, id := range img.MappedTopLayers {
			need(id)
		}
	}
	containers, err := s.store.Containers()
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		need(c.LayerID)
	}
	return needed, nil
}

// loadLayers fills the table of layers that are in the store; layers of containers are not in it.
func (s *Store) loadLayers() error {
	layers, err := s.store.Layers()
	if err != nil {
		return err
	}
	containers, err := s.store.Containers()
	if err != nil {
		return err
	}
	writable := map[string]bool{}
	for _, c := range containers {
		writable[c.LayerID] = true
	}
	s.layersMu.Lock()
	defer s.layersMu.Unlock()
	for _, l := range layers {
		if !writable[l.ID] {
			s.layers[l.ID] = factsOf(l.Metadata, l.UncompressedSize)
		}
	}
	return nil
}
