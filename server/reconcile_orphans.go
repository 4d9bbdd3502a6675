package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/server/cni"
	"github.com/orlop/orlop/server/store"
)

// orphan is something that exists and that no record owns.
type orphan struct {
	kind, id string
	remove   func(ctx context.Context) error
}

// removeOrphans looks for what no record owns before anything new is made, and removes it in the background. Every
// record is written before what it stands for, so an orphan is of a record that was lost, not of one that is late.
func (s *Server) removeOrphans(list []conmon.Container) error {
	found := s.monitorOrphans(list)
	for _, look := range []func() ([]orphan, error){s.rootfsOrphans, s.networkOrphans, s.podDirOrphans, s.containerDirOrphans} {
		more, err := look()
		if err != nil {
			return err
		}
		found = append(found, more...)
	}
	if len(found) == 0 {
		return nil
	}
	s.begin(func(ctx context.Context) {
		for _, o := range found { // in this order: processes first, then what they may have open
			s.removeOrphan(ctx, o, 1)
		}
	})
	return nil
}

func (s *Server) removeOrphan(ctx context.Context, o orphan, try int) {
	limited, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	err := guarded(limited, o.remove)
	if err == nil {
		s.log.Warn("removed what nothing owned", "kind", o.kind, "id", o.id)
		return
	}
	s.log.Warn("what nothing owns is not removed yet", "kind", o.kind, "id", o.id, "err", err, "tries", try)
	s.later(pause(try), func() { s.removeOrphan(s.ctx, o, try+1) })
}

// owned tells whether a pod or container has the ID.
func (s *Server) owned(id string) bool {
	_, pod := s.pods.get(store.PodID(id))
	_, container := s.containers.get(store.ContainerID(id))
	return pod || container
}

func (s *Server) monitorOrphans(list []conmon.Container) (found []orphan) {
	for _, c := range list {
		if !s.owned(c.ID) {
			found = append(found, orphan{"process", c.ID, func(ctx context.Context) error {
				return s.monitor.Delete(ctx, c.ID)
			}})
		}
	}
	return found
}

func (s *Server) rootfsOrphans() (found []orphan, err error) {
	ids, err := s.Storage.ListRootfs()
	if err != nil {
		return nil, fmt.Errorf("root filesystems: %w", err)
	}
	for _, id := range ids {
		if !s.owned(id) {
			found = append(found, orphan{"rootfs", id, func(ctx context.Context) error {
				return s.Storage.DeleteRootfs(ctx, id)
			}})
		}
	}
	return found, nil
}

func (s *Server) networkOrphans() (found []orphan, err error) {
	ids, err := s.Network.Attached()
	if err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	for _, id := range ids {
		if !s.owned(id) {
			found = append(found, orphan{"network", id, func(ctx context.Context) error {
				return s.Network.Del(ctx, cni.Pod{ID: id})
			}})
		}
	}
	return found, nil
}

func (s *Server) podDirOrphans() (found []orphan, err error) {
	dir := filepath.Join(s.cfg.RunRoot, "pods")
	ids, err := namesIn(dir)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if !s.owned(id) {
			found = append(found, orphan{"pod directory", id, func(ctx context.Context) error {
				path := filepath.Join(dir, id)
				err := errors.Join(s.Lookup.RemovePodFiles(ctx, path), s.Namespaces.Delete(ctx, filepath.Join(path, "ns")))
				if err != nil {
					return err
				}
				return removeBelow(dir, id)
			}})
		}
	}
	return found, nil
}

func (s *Server) containerDirOrphans() (found []orphan, err error) {
	dir := filepath.Join(s.cfg.Root, "containers")
	ids, err := namesIn(dir)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if !s.owned(id) {
			found = append(found, orphan{"container directory", id, func(context.Context) error {
				return removeBelow(dir, id)
			}})
		}
	}
	return found, nil
}

func namesIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}
