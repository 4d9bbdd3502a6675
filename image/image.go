// Package image pulls, lists and removes images. It speaks to registries through containers/image and keeps what it
// pulled in package storage.
package image

import (
	"context"
	"errors"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/storage"
)

// What callers branch on.
var (
	ErrNotFound     = errors.New("image not found")
	ErrInUse        = errors.New("image is in use")
	ErrInvalidName  = errors.New("invalid image name")
	ErrDenied       = errors.New("registry denied access")           // 401, 403
	ErrUnavailable  = errors.New("registry unavailable")             // cannot connect, 5xx, 429
	ErrPolicy       = errors.New("rejected by the signature policy") // CRI: SignatureValidationFailed
	ErrInvalidImage = errors.New("invalid image")                    // bad digest, hostile layer, unknown media type
	ErrTooLarge     = errors.New("image exceeds a limit")
)

// Config says how images are pulled.
type Config struct {
	// RegistriesConf, RegistriesConfDir: see containers-registries.conf(5). "" means the system's files.
	RegistriesConf, RegistriesConfDir string
	// PolicyPath: see containers-policy.json(5). "" means the system's file, or accept everything if there is none.
	PolicyPath string
	// AuthFile holds credentials for pulls that carry none; "" for none. See containers-auth.json(5).
	AuthFile string
	// CertsDir holds a directory of TLS certificates for each registry; see containers-certs.d(5).
	CertsDir string
	// MaxParallelLayers bounds how many layers of all pulls are fetched and unpacked at a time.
	MaxParallelLayers int
	// MaxUnpackedBytes bounds one image's unpacked size, against layer bombs; 0 for only the disk's free space.
	MaxUnpackedBytes int64
	// MinFreeBytes is left free on the disk by a pull: it fails before.
	MinFreeBytes int64
	// PinnedImages are names, or globs of names, that garbage collection must not remove.
	PinnedImages []string
}

// Image is what is known of one image in the store. It is shared and must not be changed.
type Image struct {
	// ID is the hex digits of the config's digest, without algorithm.
	ID string
	// RepoTags are names with tags, RepoDigests names with digests; both fully qualified.
	RepoTags, RepoDigests []string
	// SizeBytes is the unpacked size of all layers and the metadata.
	SizeBytes uint64
	// Config is what the image says of how to run it.
	Config imgspec.ImageConfig
	Pinned bool
	// Verbose facts.
	Architecture, OS string
	Layers           []string // diff IDs, lowest first
}

// Auth is the CRI AuthConfig: user and password, or the base64 of "user:password", or a token.
type Auth struct {
	Username, Password, Auth, ServerAddress, IdentityToken, RegistryToken string
}

// Service is safe for concurrent use.
type Service struct{}

func Open(cfg Config, st *storage.Store) (*Service, error) { panic("image: owner fills this in") }

// Pull fetches an image unless all of it is there, and returns its ID. Pulls of the same name and credentials at the
// same time are one; pulls of the same layer at the same time share it.
func (s *Service) Pull(ctx context.Context, name string, auth *Auth) (id string, err error) {
	panic("todo")
}

// List returns all images; with a name, only the one that the name means. It takes no lock and reads no disk.
func (s *Service) List(name string) ([]*Image, error) { panic("todo") }

// Resolve finds an image by ID, unique ID prefix, tag, or digest reference. ErrNotFound if there is none.
func (s *Service) Resolve(name string) (*Image, error) { panic("todo") }

// Remove removes the image that name means with all of its tags and digests (CRI RemoveImage since 1.36). inUse lists
// the image IDs that containers use: removing one of them is ErrInUse. It succeeds if there is no such image.
func (s *Service) Remove(ctx context.Context, name string, inUse func(id string) bool) error {
	panic("todo")
}

// Load puts an image from an OCI layout directory or OCI/Docker archive file into the store under name.
func (s *Service) Load(ctx context.Context, path, name string) (id string, err error) { panic("todo") }
