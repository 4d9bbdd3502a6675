package imagegc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// store is a fake runtime: images of 100 bytes, on a disk of 1000.
type store struct {
	cri.ImageServiceClient
	cri.RuntimeServiceClient
	images []*cri.Image
	inUse  []string
	volume string // an image that a container has mounted
}

func (s *store) ContainerStatus(context.Context, *cri.ContainerStatusRequest, ...grpc.CallOption) (*cri.ContainerStatusResponse, error) {
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Mounts: []*cri.Mount{{}, {Image: &cri.ImageSpec{Image: s.volume}}}}}, nil
}

func (s *store) ListImages(context.Context, *cri.ListImagesRequest, ...grpc.CallOption) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{Images: s.images}, nil
}

func (s *store) RemoveImage(_ context.Context, r *cri.RemoveImageRequest, _ ...grpc.CallOption) (*cri.RemoveImageResponse, error) {
	s.images = slices.DeleteFunc(s.images, func(i *cri.Image) bool { return i.Id == r.Image.Image })
	return &cri.RemoveImageResponse{}, nil
}

func (s *store) ImageFsInfo(context.Context, *cri.ImageFsInfoRequest, ...grpc.CallOption) (*cri.ImageFsInfoResponse, error) {
	return &cri.ImageFsInfoResponse{ImageFilesystems: []*cri.FilesystemUsage{{FsId: &cri.FilesystemIdentifier{Mountpoint: "/images"}}}}, nil
}

func (s *store) ListContainers(context.Context, *cri.ListContainersRequest, ...grpc.CallOption) (*cri.ListContainersResponse, error) {
	reply := &cri.ListContainersResponse{}
	for _, id := range s.inUse {
		reply.Containers = append(reply.Containers, &cri.Container{ImageId: id})
	}
	return reply, nil
}

func (s *store) add(names ...string) {
	for _, name := range names {
		s.images = append(s.images, &cri.Image{Id: name, Size: 100, Pinned: strings.HasPrefix(name, "pinned")})
	}
}

func (s *store) left() string {
	var names []string
	for _, i := range s.images {
		names = append(names, i.Id)
	}
	return strings.Join(names, " ")
}

func (s *store) manager(change func(*Config)) *Manager {
	cfg := Config{
		Runtime: Runtime{Images: s, Containers: s}, HighPercent: 85, LowPercent: 60, MinAge: 2 * time.Minute,
		Failed: func(error) {}, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	m := New(cfg)
	m.usage = func(path string) (used, capacity uint64, err error) {
		if path != "/images" {
			return 0, 0, fmt.Errorf("asked about %s", path)
		}
		return uint64(len(s.images)) * 100, 1000, nil
	}
	return m
}

// TestNearlyFull removes what was not used for the longest time, until the disk is below the low threshold.
func TestNearlyFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		m := s.manager(nil)
		s.add("old", "busy", "pinned", "lately")
		s.inUse = []string{"busy", "lately"}
		if err := m.Collect(t.Context()); err != nil || s.left() != "old busy pinned lately" {
			t.Fatalf("at 40 %%: %v, left %s", err, s.left())
		}
		time.Sleep(3 * time.Minute)
		s.inUse = []string{"busy"}
		s.add("n1", "n2", "n3", "n4", "n5")
		if err := m.Collect(t.Context()); err == nil {
			t.Error("the new images are too young to go, and no error tells that there is too little room")
		}
		if s.left() != "busy pinned n1 n2 n3 n4 n5" {
			t.Errorf("at 90 %%: left %s", s.left())
		}
	})
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		m := s.manager(func(c *Config) { c.MaxAge = time.Hour })
		s.add("stale", "busy")
		s.inUse = []string{"busy"}
		_ = m.Collect(t.Context())
		time.Sleep(61 * time.Minute)
		if err := m.Collect(t.Context()); err != nil || s.left() != "busy" {
			t.Errorf("%v, left %s", err, s.left())
		}
	})
}

func TestRemoveUnused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		m := s.manager(func(c *Config) { c.MinAge = 0 })
		s.add("a", "busy", "pinned", "volume")
		s.inUse, s.volume = []string{"busy"}, "volume"
		if freed, err := m.RemoveUnused(t.Context()); freed != 100 || err != nil || s.left() != "busy pinned volume" {
			t.Errorf("freed %d, %v, left %s", freed, err, s.left())
		}
	})
}
