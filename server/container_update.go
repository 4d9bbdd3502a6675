package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/store"
)

// updateTime bounds one change of limits. Reclaiming memory down to a new limit takes the kernel a while.
const updateTime = time.Minute

// UpdateContainerResources changes the limits of a container that is created or runs. What the request leaves out
// stays as it is.
func (s *Server) UpdateContainerResources(ctx context.Context, req *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	c, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if req.GetLinux() == nil {
		return nil, fmt.Errorf("container %s: %w", c.id, invalid("linux", "", "set it"))
	}
	if err := s.updateContainer(ctx, c, req.GetLinux()); err != nil {
		return nil, fmt.Errorf("container %s: update: %w", c.id, err)
	}
	return &cri.UpdateContainerResourcesResponse{}, nil
}

func (s *Server) updateContainer(ctx context.Context, c *container, changes *cri.LinuxContainerResources) error {
	if err := c.turn.take(ctx); err != nil {
		return err
	}
	defer c.turn.give()
	if !c.alive() {
		return fmt.Errorf("%w: it has %s", store.ErrState, c.state())
	}
	all := mergeResources(resourcesOf(c.rec.Load()), changes)
	limits, notes, err := spec.Resources(s.Host, all)
	if err != nil {
		return err
	}
	// From here on a caller who gives up changes nothing: the record must say what the kernel was told.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), updateTime)
	defer cancel()
	_, err = retry(ctx, func() (any, error) { return nil, s.monitor.Update(ctx, string(c.id), limits) })
	if err != nil {
		return err
	}
	return c.write(func(rec *store.Container) {
		rec.Resources = &store.Resources{CRI: all}
		for _, note := range notes {
			if !slices.Contains(rec.Notes, note) {
				rec.Notes = append(slices.Clip(rec.Notes), note) // readers have the old list
			}
		}
	})
}

// mergeResources returns old with what changes sets. A zero is "not set" in this message, so a limit can't be taken
// back by it; CRI has -1 for that where it matters.
//
// The OOM score stays what the container was made with: it belongs to processes, which have handed it on to their
// children, and not to the cgroup. containerd and CRI-O change none either. It can't be refused: the kubelet sends
// one with each change of the memory request.
func mergeResources(old, changes *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	all := &cri.LinuxContainerResources{}
	if old != nil {
		all = proto.CloneOf(old)
	}
	if len(changes.GetHugepageLimits()) > 0 {
		all.HugepageLimits = nil // a list is replaced; Merge would append
	}
	proto.Merge(all, changes)
	all.OomScoreAdj = old.GetOomScoreAdj()
	return all
}
