package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// ContainerStatus takes no lock. Verbose adds what people look for as JSON under the key "info".
func (s *Server) ContainerStatus(_ context.Context, req *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	c, err := s.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &cri.ContainerStatusResponse{Status: c.status()}
	if req.GetVerbose() {
		if resp.Info, err = infoOf(c.info()); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.id, err)
		}
	}
	return resp, nil
}

func (c *container) status() *cri.ContainerStatus {
	rec := c.rec.Load()
	status := &cri.ContainerStatus{
		Id: string(rec.ID), Metadata: rec.Config.GetMetadata(), State: criContainerState(rec.State),
		CreatedAt: rec.CreatedAt.UnixNano(), StartedAt: nanos(rec.StartedAt),
		Image: c.image, ImageRef: rec.ImageRef, ImageId: rec.ImageID,
		Labels: rec.Config.GetLabels(), Annotations: rec.Config.GetAnnotations(),
		Mounts: mountsOf(rec), LogPath: rec.LogPath, User: criUser(rec.User),
		Resources:  &cri.ContainerResources{Linux: resourcesOf(rec)},
		StopSignal: criSignal(rec.StopSignal),
	}
	if e := rec.Exit; e != nil {
		status.FinishedAt, status.ExitCode = nanos(e.FinishedAt), int32(e.Code)
		status.Reason, status.Message = e.Reason, e.Message
	}
	return status
}

// nanos is a time as CRI has it; 0 is one that has not come.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func criUser(u store.User) *cri.ContainerUser {
	user := &cri.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, g := range u.Groups {
		user.SupplementalGroups = append(user.SupplementalGroups, int64(g))
	}
	return &cri.ContainerUser{Linux: user}
}

// containerInfo is the verbose part of a container's status; the names are those that crictl users know.
type containerInfo struct {
	SandboxID   string             `json:"sandboxID"`
	Pid         int                `json:"pid"` // 0 once it has exited
	State       string             `json:"state"`
	CgroupsPath string             `json:"cgroupsPath"`
	Notes       []string           `json:"notes"`
	Timings     map[string]float64 `json:"timings"` // milliseconds of each step
	Pending     *store.Pending     `json:"pending,omitempty"`
	RuntimeSpec json.RawMessage    `json:"runtimeSpec,omitempty"`
}

func (c *container) info() containerInfo {
	rec := c.rec.Load()
	info := containerInfo{
		SandboxID: string(rec.Pod), State: string(rec.State), CgroupsPath: rec.CgroupsPath,
		Notes: emptyNotNull(rec.Notes), Timings: milliseconds(rec.Timings), Pending: rec.Pending,
	}
	if c.alive() {
		info.Pid = rec.Pid
	}
	// Not there after a crash of the machine: the status does without.
	if spec, err := os.ReadFile(c.specPath()); err == nil && json.Valid(spec) {
		info.RuntimeSpec = spec
	}
	return info
}

// mountsOf are the config's mounts; an image's says which image was found.
func mountsOf(rec *store.Container) []*cri.Mount {
	mounts := rec.Config.GetMounts()
	if len(rec.MountImages) == 0 {
		return mounts
	}
	out := make([]*cri.Mount, len(mounts))
	for i, m := range mounts {
		if id, ok := rec.MountImages[i]; ok {
			m = proto.CloneOf(m)
			m.Image.ImageRef = id
		}
		out[i] = m
	}
	return out
}

// resourcesOf are the limits that count now: those of the config, or of the last update.
func resourcesOf(rec *store.Container) *cri.LinuxContainerResources {
	if rec.Resources != nil {
		return rec.Resources.CRI
	}
	return rec.Config.GetLinux().GetResources()
}
