// Package imageserver is the CRI ImageService: requests and answers for package image.
package imageserver

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/storage"
)

// Images is what is needed of [image.Service].
type Images interface {
	Pull(ctx context.Context, name string, auth *image.Auth) (id string, err error)
	List(name string) ([]*image.Image, error)
	Resolve(name string) (*image.Image, error)
	Remove(ctx context.Context, name string, inUse func(id string) bool) error
}

// Storage is what is needed of [storage.Store].
type Storage interface {
	FilesystemUsage(ctx context.Context) (path string, u storage.Usage, err error)
}

// Server implements the CRI ImageService.
type Server struct {
	cri.UnimplementedImageServiceServer
	images  Images
	storage Storage
	inUse   func(imageID string) bool
}

// New makes the service. InUse tells whether a container uses an image: such a one is not removed.
func New(images Images, st Storage, inUse func(imageID string) bool) *Server {
	return &Server{images: images, storage: st, inUse: inUse}
}
