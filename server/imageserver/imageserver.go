// Package imageserver is the CRI's ImageService: it tells clients of images in the CRI's words.
package imageserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/server/store"
	"github.com/orlop/orlop/storage"
)

// Images is [image.Service].
type Images interface {
	Pull(ctx context.Context, name string, auth *image.Auth) (id string, err error)
	List(name string) ([]*image.Image, error)
	Resolve(name string) (*image.Image, error)
	Remove(ctx context.Context, name string, inUse func(id string) bool) error
}

// Disk is what is needed of [storage.Store].
type Disk interface {
	FilesystemUsage(ctx context.Context) (path string, u storage.Usage, err error)
}

// Server implements the CRI ImageService.
type Server struct {
	cri.UnimplementedImageServiceServer

	images Images
	disk   Disk
	inUse  func(imageID string) bool
}

// handlerName is the only runtime handler, as RunPodSandbox and Status know it.
const handlerName = "orlop"

// New makes the service. inUse tells whether a container uses an image: such an image is not removed.
func New(images Images, disk Disk, inUse func(imageID string) bool) *Server {
	return &Server{images: images, disk: disk, inUse: inUse}
}

// PullImage may be repeated: pulls of one image at the same time are one.
func (s *Server) PullImage(ctx context.Context, req *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	name, err := nameOf(req.GetImage())
	if err != nil {
		return nil, err
	}
	if h := req.GetImage().GetRuntimeHandler(); h != "" && h != handlerName {
		return nil, fmt.Errorf("%w: image.runtime_handler %q: this node has \"\" and %q", store.ErrInvalid, h, handlerName)
	}
	id, err := s.images.Pull(ctx, name, authOf(req.GetAuth()))
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", name, err)
	}
	return &cri.PullImageResponse{ImageRef: id}, nil
}

// ListImages returns all images, or only the one that the filter names.
func (s *Server) ListImages(_ context.Context, req *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	images, err := s.images.List(req.GetFilter().GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	out := make([]*cri.Image, len(images))
	for i, img := range images {
		out[i] = criImage(img)
	}
	return &cri.ListImagesResponse{Images: out}, nil
}

// ImageStatus answers without an image if there is none: that is not an error (CRI).
func (s *Server) ImageStatus(_ context.Context, req *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	name, err := nameOf(req.GetImage())
	if err != nil {
		return nil, err
	}
	img, err := s.images.Resolve(name)
	if errors.Is(err, image.ErrNotFound) {
		return &cri.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	answer := &cri.ImageStatusResponse{Image: criImage(img)}
	if req.GetVerbose() {
		answer.Info, err = info(img)
	}
	return answer, err
}

// RemoveImage succeeds if there is no such image.
func (s *Server) RemoveImage(ctx context.Context, req *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	name, err := nameOf(req.GetImage())
	if err != nil {
		return nil, err
	}
	if err := s.images.Remove(ctx, name, s.inUse); err != nil {
		return nil, fmt.Errorf("remove image %s: %w", name, err)
	}
	return &cri.RemoveImageResponse{}, nil
}

// ImageFsInfo tells how much space images and containers take. Both are on one file system.
func (s *Server) ImageFsInfo(ctx context.Context, _ *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	path, used, err := s.disk.FilesystemUsage(ctx)
	if err != nil {
		return nil, err
	}
	fs := &cri.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &cri.FilesystemIdentifier{Mountpoint: path},
		UsedBytes:  &cri.UInt64Value{Value: used.Bytes},
		InodesUsed: &cri.UInt64Value{Value: used.Inodes},
	}
	return &cri.ImageFsInfoResponse{
		ImageFilesystems: []*cri.FilesystemUsage{fs}, ContainerFilesystems: []*cri.FilesystemUsage{fs},
	}, nil
}

// nameOf returns what a request calls an image. The kubelet sends the name from the pod and, when it has resolved it,
// the ID.
func nameOf(spec *cri.ImageSpec) (string, error) {
	if name := spec.GetImage(); name != "" {
		return name, nil
	}
	return "", fmt.Errorf("%w: image.image is empty; name an image", image.ErrInvalidName)
}

func authOf(a *cri.AuthConfig) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
}

func criImage(img *image.Image) *cri.Image {
	out := &cri.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests,
		Size: max(img.SizeBytes, 1), Pinned: img.Pinned, Spec: &cri.ImageSpec{Image: img.ID},
	}
	out.Uid, out.Username = userOf(img.Config.User)
	return out
}

// userOf splits an image's USER, which may be "user", "uid", and either with ":group".
func userOf(user string) (*cri.Int64Value, string) {
	name, _, _ := strings.Cut(user, ":")
	if name == "" {
		return &cri.Int64Value{}, "" // root
	}
	if uid, err := strconv.ParseInt(name, 10, 64); err == nil {
		return &cri.Int64Value{Value: uid}, ""
	}
	return nil, name
}

// info is the verbose status: what `crictl inspecti` shows below the status, under the names that containerd and
// CRI-O use.
func info(img *image.Image) (map[string]string, error) {
	text, err := json.Marshal(map[string]any{
		"imageSpec": imgspec.Image{
			Created: created(img), Author: img.Author,
			Platform: imgspec.Platform{Architecture: img.Architecture, OS: img.OS},
			Config:   img.Config,
		},
		"layers":         img.Layers,
		"manifestDigest": img.ManifestDigest,
		"pulledAt":       img.PulledAt,
	})
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(text)}, nil
}

func created(img *image.Image) *time.Time {
	if img.Created.IsZero() {
		return nil
	}
	return &img.Created
}
