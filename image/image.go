// Package image pulls, lists and removes images. It speaks to registries through containers/image and keeps what it
// pulled in package storage.
//
// A pull downloads the layers of an image side by side, and each is verified, decompressed and unpacked while it
// downloads; nothing of it is written but its files. What is known of the images is an immutable snapshot in
// memory: List and Resolve read that and nothing else. No lock is held while the network is waited for.
package image

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop/orlop/storage"
)

// What callers branch on.
var (
	ErrNotFound     = errors.New("image not found")
	ErrInUse        = errors.New("image is in use")
	ErrInvalidName  = errors.New("invalid image name")
	ErrDenied       = errors.New("registry denied access")           // 401, 403, blocked by registries.conf
	ErrUnavailable  = errors.New("registry unavailable")             // cannot connect, 5xx, 429, stalled
	ErrPolicy       = errors.New("rejected by the signature policy") // CRI: SignatureValidationFailed
	ErrInvalidImage = errors.New("invalid image")                    // bad digest, hostile layer, unknown media type
	ErrTooLarge     = errors.New("image exceeds a limit")
)

// Config says how images are pulled.
type Config struct {
	// RegistriesConf, RegistriesConfDir: see containers-registries.conf(5). "" means the system's files. They are
	// read anew for each pull.
	RegistriesConf, RegistriesConfDir string
	// PolicyPath: see containers-policy.json(5). "" means the system's file, or accept everything if there is none.
	PolicyPath string
	// AuthFile holds credentials for pulls that carry none; "" for none. See containers-auth.json(5).
	AuthFile string
	// CertsDir holds a directory of TLS certificates for each registry; see containers-certs.d(5).
	CertsDir string
	// MaxParallelLayers bounds how many layers of one image are fetched and unpacked at a time; 0 means 4. Of all
	// images together there may be parallelImages times as many.
	MaxParallelLayers int
	// MaxUnpackedBytes bounds one image's unpacked size, against layer bombs; 0 for only the disk's free space.
	// Layers that are in the store already do not count.
	MaxUnpackedBytes int64
	// MinFreeBytes is left free on the disk by a pull: it fails before.
	MinFreeBytes int64
	// StallTimeout ends a pull when a registry sends less than slowestBytes of a layer in so long, or no document;
	// 0 means one minute.
	StallTimeout time.Duration
	// PinnedImages are names, or globs of names, that garbage collection must not remove. A * stands for any
	// characters, also slashes.
	PinnedImages []string
	// Log gets pulls and removals; nil for none.
	Log *slog.Logger
}

// Image is what is known of one image in the store. It is shared and must not be changed.
type Image struct {
	// ID is the hex digits of the config's digest, without algorithm.
	ID string
	// RepoTags are names with tags, RepoDigests names with digests; both fully qualified.
	RepoTags, RepoDigests []string
	// SizeBytes is the unpacked size of all layers and the config.
	SizeBytes uint64
	// Config is what the image says of how to run it.
	Config imgspec.ImageConfig
	Pinned bool
	// Verbose facts.
	Architecture, OS string
	Layers           []string // diff IDs, lowest first
	Author           string
	Created          time.Time // when it was built, by its own word; zero if it does not say
	PulledAt         time.Time // when it came into the store
	ManifestDigest   string
}

// Service is safe for concurrent use.
type Service struct {
	cfg   Config
	log   *slog.Logger
	store *storage.Store
	pins  []pin
	index atomic.Pointer[index]

	// changeMu is held while the store's images and the index change together. Lock order: before those of storage.
	changeMu sync.Mutex

	pulls  *group[string]               // by name and credentials
	layers *group[*storage.StagedLayer] // by layer ID
	slots  chan struct{}                // one token per layer that is fetched, of whatever image

	activeMu sync.Mutex
	active   map[*job]struct{} // what Pulls shows
}

const (
	defaultParallelLayers = 4
	// parallelImages is how many images may have all of their layers under way. It bounds memory, some MB a layer, and
	// no registry should find it: an image that comes slowly takes only its own share.
	parallelImages      = 8
	defaultStallTimeout = time.Minute
)

// Open reads what images the store has.
func Open(cfg Config, st *storage.Store) (*Service, error) {
	if cfg.MaxParallelLayers <= 0 {
		cfg.MaxParallelLayers = defaultParallelLayers
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = defaultStallTimeout
	}
	s := &Service{
		cfg:    cfg,
		log:    cfg.Log,
		store:  st,
		pulls:  newGroup[string](nil),
		slots:  make(chan struct{}, parallelImages*cfg.MaxParallelLayers),
		active: map[*job]struct{}{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.layers = newGroup(func(l *storage.StagedLayer) {
		if err := l.Discard(); err != nil {
			s.log.Error("staged layer stays until the next start", "err", err)
		}
	})
	var err error
	if s.pins, err = parsePins(cfg.PinnedImages); err != nil {
		return nil, err
	}
	records, err := st.Images()
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	images := make(map[string]*Image, len(records))
	for _, r := range records {
		img, err := s.fromRecord(r)
		if err != nil {
			s.log.Error("image can't be used, pull it again", "image", r.ID, "err", err)
			continue
		}
		images[img.ID] = img
	}
	s.index.Store(newIndex(images))
	return s, nil
}

// Close cancels all pulls and waits until they have ended. It comes before the store's Close.
func (s *Service) Close() {
	s.pulls.close()
	s.layers.close() // pulls leave their layers themselves; loads may still have some
}
