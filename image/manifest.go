package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	containersimage "github.com/containers/image/v5/image"
	"github.com/containers/image/v5/manifest"
	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits for documents that are read into memory, and for what overlayfs can stack.
const (
	maxManifestBytes = 4 << 20
	maxConfigBytes   = 8 << 20
	maxLayers        = 256 // overlayfs itself takes 500
)

// description is what an image says of itself.
type description struct {
	id             string // hex digits of the config's digest
	config         []byte
	manifest       []byte
	manifestDigest digest.Digest
	// topDigest is that of the document which the name led to: the manifest itself, or the index above it.
	topDigest digest.Digest
	diffIDs   []digest.Digest
	blobs     []types.BlobInfo // as many as diffIDs
}

// describe reads the manifest for this platform and the config, and checks both.
func (s *Service) describe(ctx context.Context, src *source, sys *types.SystemContext) (*description, *containersimage.UnparsedImage, error) {
	top := containersimage.UnparsedInstance(src, nil)
	data, mime, err := readManifest(ctx, top)
	if err != nil {
		return nil, nil, err
	}
	d := &description{manifest: data, topDigest: digest.FromBytes(data), manifestDigest: digest.FromBytes(data)}
	chosen := top
	if manifest.MIMETypeIsMultiImage(mime) {
		instance, err := chooseInstance(data, mime, sys)
		if err != nil {
			return nil, nil, err
		}
		chosen = containersimage.UnparsedInstance(src, &instance)
		if d.manifest, mime, err = readManifest(ctx, chosen); err != nil {
			return nil, nil, err
		}
		d.manifestDigest = instance
	}
	if err := d.parseManifest(ctx, src, mime); err != nil {
		return nil, nil, err
	}
	return d, chosen, nil
}

// readManifest reads a manifest; containers/image compares the digest if the name or the index has one.
func readManifest(ctx context.Context, img *containersimage.UnparsedImage) ([]byte, string, error) {
	data, mime, err := img.Manifest(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("manifest: %w", err)
	}
	if len(data) > maxManifestBytes {
		return nil, "", fmt.Errorf("%w: manifest of %d bytes, at most %d", ErrTooLarge, len(data), maxManifestBytes)
	}
	switch mime {
	case imgspec.MediaTypeImageManifest, imgspec.MediaTypeImageIndex,
		manifest.DockerV2Schema2MediaType, manifest.DockerV2ListMediaType:
	default: // registries that do not know send something general
		mime = manifest.GuessMIMEType(data)
	}
	return data, mime, nil
}

func chooseInstance(data []byte, mime string, sys *types.SystemContext) (digest.Digest, error) {
	list, err := manifest.ListFromBlob(data, mime)
	if err != nil {
		return "", fmt.Errorf("%w: index: %w", ErrInvalidImage, err)
	}
	instance, err := list.ChooseInstance(sys)
	if err != nil {
		return "", fmt.Errorf("%w: no image for this platform: %w", ErrNotFound, err)
	}
	if err := instance.Validate(); err != nil {
		return "", fmt.Errorf("%w: index: digest %q: %w", ErrInvalidImage, instance, err)
	}
	return instance, nil
}

// parseManifest reads the layers and the config.
func (d *description) parseManifest(ctx context.Context, src *source, mime string) error {
	switch mime {
	case imgspec.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType:
	default:
		return fmt.Errorf("%w: manifest of type %q: only OCI and Docker schema 2 are known", ErrInvalidImage, mime)
	}
	m, err := manifest.FromBlob(d.manifest, mime)
	if err != nil {
		return fmt.Errorf("%w: manifest: %w", ErrInvalidImage, err)
	}
	for _, layer := range m.LayerInfos() {
		if err := layer.Digest.Validate(); err != nil || layer.Digest.Algorithm() != digest.SHA256 {
			return fmt.Errorf("%w: layer digest %q is not SHA-256", ErrInvalidImage, layer.Digest)
		}
		d.blobs = append(d.blobs, layer.BlobInfo)
	}
	if len(d.blobs) > maxLayers {
		return fmt.Errorf("%w: %d layers, at most %d", ErrTooLarge, len(d.blobs), maxLayers)
	}
	return d.readConfig(ctx, src, m.ConfigInfo())
}

func (d *description) readConfig(ctx context.Context, src *source, info types.BlobInfo) error {
	if err := info.Digest.Validate(); err != nil || info.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%w: config digest %q is not SHA-256", ErrInvalidImage, info.Digest)
	}
	if info.Size > maxConfigBytes {
		return fmt.Errorf("%w: config of %d bytes, at most %d", ErrTooLarge, info.Size, maxConfigBytes)
	}
	body, _, err := src.GetBlob(ctx, info, none.NoCache)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	defer body.Close()
	if d.config, err = io.ReadAll(io.LimitReader(body, maxConfigBytes+1)); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if len(d.config) > maxConfigBytes {
		return fmt.Errorf("%w: config of more than %d bytes", ErrTooLarge, maxConfigBytes)
	}
	if got := digest.FromBytes(d.config); got != info.Digest {
		return fmt.Errorf("%w: config has digest %s, not %s", ErrInvalidImage, got, info.Digest)
	}
	d.id = info.Digest.Encoded()
	return d.parseConfig()
}

func (d *description) parseConfig() error {
	var config imgspec.Image
	if err := json.Unmarshal(d.config, &config); err != nil {
		return fmt.Errorf("%w: config: %w", ErrInvalidImage, err)
	}
	if config.OS != "" && config.OS != "linux" {
		return fmt.Errorf("%w: it is for the operating system %q, not linux", ErrInvalidImage, config.OS)
	}
	d.diffIDs = config.RootFS.DiffIDs
	if len(d.diffIDs) != len(d.blobs) {
		return fmt.Errorf("%w: %d layers, but %d diff IDs in the config", ErrInvalidImage, len(d.blobs), len(d.diffIDs))
	}
	for _, id := range d.diffIDs {
		if err := id.Validate(); err != nil || id.Algorithm() != digest.SHA256 {
			return fmt.Errorf("%w: diff ID %q is not SHA-256", ErrInvalidImage, id)
		}
	}
	return nil
}
