// Package images makes images for tests, and the demo, out of real content: Debian packages and a probe program of
// our own. They are built once and kept as OCI layouts in the user's cache directory. It also makes images that no
// honest builder would: see Hostile.
package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's names of what the OCI image specification has too.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Blob is content under a digest. Only a hostile image's content does not have that digest.
type Blob struct {
	imgspec.Descriptor
	Open func() (io.ReadCloser, error)
}

// Bytes makes a Blob of raw.
func Bytes(mediaType string, raw []byte) Blob {
	return Blob{
		Descriptor: imgspec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
		Open:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
	}
}

// JSON makes a Blob of v.
func JSON(mediaType string, v any) Blob {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // v is a literal of this package
	}
	return Bytes(mediaType, raw)
}

// Read returns all of the content.
func (b Blob) Read() ([]byte, error) {
	r, err := b.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Image is what a registry serves: a manifest or an index, and all that is reached from it.
type Image struct {
	Root      Blob
	Manifests []Blob // of an index
	Blobs     []Blob // layers and configs
}

// Load reads an OCI layout that holds one image.
func Load(dir string) (*Image, error) {
	raw, err := os.ReadFile(filepath.Join(dir, imgspec.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	var index imgspec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("%s/%s: %w", dir, imgspec.ImageIndexFile, err)
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%s: %d images; want 1", dir, len(index.Manifests))
	}
	img := &Image{Root: fileBlob(dir, index.Manifests[0])}
	return img, img.load(dir, img.Root)
}

func (img *Image) load(dir string, root Blob) error {
	raw, err := root.Read()
	if err != nil {
		return err
	}
	var m struct {
		Config    *imgspec.Descriptor
		Layers    []imgspec.Descriptor
		Manifests []imgspec.Descriptor
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("%s: %w", root.Digest, err)
	}
	for _, d := range m.Manifests {
		child := fileBlob(dir, d)
		img.Manifests = append(img.Manifests, child)
		if err := img.load(dir, child); err != nil {
			return err
		}
	}
	if m.Config != nil {
		img.Blobs = append(img.Blobs, fileBlob(dir, *m.Config))
	}
	for _, d := range m.Layers {
		img.Blobs = append(img.Blobs, fileBlob(dir, d))
	}
	return nil
}

func fileBlob(dir string, d imgspec.Descriptor) Blob {
	return Blob{Descriptor: d, Open: func() (io.ReadCloser, error) {
		return os.Open(filepath.Join(dir, imgspec.ImageBlobsDir, "sha256", d.Digest.Encoded()))
	}}
}

// Save writes img as an OCI layout; ref is its org.opencontainers.image.ref.name.
func (img *Image) Save(dir, ref string) error {
	blobs := filepath.Join(dir, imgspec.ImageBlobsDir, "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	for _, b := range append(append([]Blob{img.Root}, img.Manifests...), img.Blobs...) {
		if err := saveBlob(filepath.Join(blobs, b.Digest.Encoded()), b); err != nil {
			return err
		}
	}
	root := img.Root.Descriptor
	root.Annotations = map[string]string{imgspec.AnnotationRefName: ref}
	index := JSON(imgspec.MediaTypeImageIndex, imgspec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageIndex,
		Manifests: []imgspec.Descriptor{root},
	})
	raw, err := index.Read()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, imgspec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, imgspec.ImageIndexFile), raw, 0o644)
}

func saveBlob(path string, b Blob) error {
	if st, err := os.Stat(path); err == nil && st.Size() == b.Size {
		return nil
	}
	in, err := b.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, hash), in); err != nil {
		out.Close()
		return err
	}
	if got := fmt.Sprintf("sha256:%x", hash.Sum(nil)); got != b.Digest.String() {
		out.Close()
		return fmt.Errorf("content of %s has digest %s", b.Digest, got)
	}
	return out.Close()
}

// Format is how an image is described and compressed.
type Format struct {
	Docker bool // schema 2, else OCI
	Zstd   bool // else gzip; OCI only
}

// Assemble makes an image of one platform.
func Assemble(f Format, config imgspec.ImageConfig, arch string, layers ...Layer) (*Image, error) {
	if arch == "" {
		arch = runtime.GOARCH
	}
	full := imgspec.Image{
		Platform: imgspec.Platform{Architecture: arch, OS: "linux"}, Config: config,
		RootFS: imgspec.RootFS{Type: "layers"},
	}
	img := &Image{}
	var descriptors []imgspec.Descriptor
	for _, l := range layers {
		b, diffID, err := l.compress(f)
		if err != nil {
			return nil, err
		}
		full.RootFS.DiffIDs = append(full.RootFS.DiffIDs, diffID)
		full.History = append(full.History, imgspec.History{CreatedBy: l.Name})
		descriptors = append(descriptors, b.Descriptor)
		img.Blobs = append(img.Blobs, b)
	}
	configType, manifestType := imgspec.MediaTypeImageConfig, imgspec.MediaTypeImageManifest
	if f.Docker {
		configType, manifestType = dockerConfig, dockerManifest
	}
	configBlob := JSON(configType, full)
	img.Blobs = append(img.Blobs, configBlob)
	img.Root = JSON(manifestType, imgspec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: manifestType,
		Config: configBlob.Descriptor, Layers: descriptors,
	})
	img.Root.Platform = &full.Platform
	return img, nil
}

// Index joins images of several platforms.
func Index(f Format, images ...*Image) *Image {
	typ := imgspec.MediaTypeImageIndex
	if f.Docker {
		typ = dockerList
	}
	joined := &Image{}
	index := imgspec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: typ}
	for _, img := range images {
		index.Manifests = append(index.Manifests, img.Root.Descriptor)
		joined.Manifests = append(joined.Manifests, img.Root)
		joined.Blobs = append(joined.Blobs, img.Blobs...)
	}
	joined.Root = JSON(typ, index)
	return joined
}

// ConfigID is what CRI calls the image's ID: the hex digits of its config's digest. For an index it is that of this
// machine's architecture.
func (img *Image) ConfigID() (string, error) {
	roots := img.Manifests
	if len(roots) == 0 {
		roots = []Blob{img.Root}
	}
	for _, root := range roots {
		if root.Platform != nil && root.Platform.Architecture != runtime.GOARCH {
			continue
		}
		raw, err := root.Read()
		if err != nil {
			return "", err
		}
		var m imgspec.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return "", err
		}
		return m.Config.Digest.Encoded(), nil
	}
	return "", fmt.Errorf("no manifest for %s", runtime.GOARCH)
}

// Reconfigure returns the image with another config: the same layers under a new ID.
func (img *Image) Reconfigure(change func(*imgspec.ImageConfig)) (*Image, error) {
	if len(img.Manifests) == 0 {
		return img.reconfigure(img.Root, change)
	}
	var each []*Image
	for _, m := range img.Manifests {
		one, err := img.reconfigure(m, change)
		if err != nil {
			return nil, err
		}
		each = append(each, one)
	}
	return Index(Format{Docker: img.Root.MediaType == dockerList}, each...), nil
}

// reconfigure makes an image of one manifest with another config.
func (img *Image) reconfigure(root Blob, change func(*imgspec.ImageConfig)) (*Image, error) {
	var m imgspec.Manifest
	if err := root.decode(&m); err != nil {
		return nil, err
	}
	blobs := map[digest.Digest]Blob{}
	for _, b := range img.Blobs {
		blobs[b.Digest] = b
	}
	var full imgspec.Image
	if err := blobs[m.Config.Digest].decode(&full); err != nil {
		return nil, err
	}
	change(&full.Config)
	config := JSON(m.Config.MediaType, full)
	m.Config = config.Descriptor
	out := &Image{Root: JSON(m.MediaType, m), Blobs: []Blob{config}}
	out.Root.Platform = root.Platform
	for _, l := range m.Layers {
		out.Blobs = append(out.Blobs, blobs[l.Digest])
	}
	return out, nil
}

func (b Blob) decode(v any) error {
	raw, err := b.Read()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", b.Digest, err)
	}
	return nil
}

// Size of all content as it is transferred, in bytes.
func (img *Image) Size() int64 {
	size := img.Root.Size
	for _, b := range append(append([]Blob(nil), img.Manifests...), img.Blobs...) {
		size += b.Size
	}
	return size
}

// WithFile returns the image of one platform with a file more, in a layer of its own, which is then what it runs.
func (img *Image) WithFile(name string, mode int64, content []byte) (*Image, error) {
	var m imgspec.Manifest
	if err := img.Root.decode(&m); err != nil {
		return nil, err
	}
	l, err := newLayer("file "+name).file(name, mode, content).layer()
	if err != nil {
		return nil, err
	}
	blob, diffID, err := l.compress(Format{})
	if err != nil {
		return nil, err
	}
	out := &Image{Blobs: []Blob{blob}}
	for _, b := range img.Blobs {
		if b.Digest != m.Config.Digest {
			out.Blobs = append(out.Blobs, b)
			continue
		}
		var full imgspec.Image
		if err := b.decode(&full); err != nil {
			return nil, err
		}
		full.RootFS.DiffIDs = append(full.RootFS.DiffIDs, diffID)
		full.History = append(full.History, imgspec.History{CreatedBy: l.Name})
		full.Config.Entrypoint, full.Config.Cmd = []string{"/" + name}, nil
		config := JSON(m.Config.MediaType, full)
		m.Config = config.Descriptor
		out.Blobs = append(out.Blobs, config)
	}
	m.Layers = append(m.Layers, blob.Descriptor)
	out.Root = JSON(m.MediaType, m)
	out.Root.Platform = img.Root.Platform
	return out, nil
}
