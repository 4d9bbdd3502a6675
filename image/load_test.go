package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeLayout makes an OCI layout directory with one image per name and returns it.
func writeLayout(t testing.TB, layer []byte, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	put := func(data []byte, mime string) imgspec.Descriptor {
		d := digest.FromBytes(data)
		file := filepath.Join(dir, "blobs/sha256", d.Encoded())
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return imgspec.Descriptor{MediaType: mime, Digest: d, Size: int64(len(data))}
	}
	index := imgspec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageIndex}
	for _, name := range names {
		var config imgspec.Image
		config.OS, config.Architecture, config.Author = "linux", "amd64", name
		config.RootFS = imgspec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}
		zipped, _ := squeeze(t, layerSpec{layer, "gzip"})
		m := put(marshal(t, imgspec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest,
			Config: put(marshal(t, config), imgspec.MediaTypeImageConfig),
			Layers: []imgspec.Descriptor{put(zipped, imgspec.MediaTypeImageLayerGzip)},
		}), imgspec.MediaTypeImageManifest)
		m.Annotations = map[string]string{imgspec.AnnotationRefName: name}
		index.Manifests = append(index.Manifests, m)
	}
	writeFile(t, dir, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	writeFile(t, dir, "index.json", string(marshal(t, index)))
	return dir
}

// pack makes a tar file of a directory.
func pack(t testing.TB, dir string) string {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := tw.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, t.TempDir(), "image.tar", buf.String())
}

// writeDockerArchive makes what `docker save` of older versions makes.
func writeDockerArchive(t testing.TB, layer []byte) string {
	t.Helper()
	dir := t.TempDir()
	var config imgspec.Image
	config.OS, config.Architecture = "linux", "amd64"
	config.RootFS = imgspec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}
	data := marshal(t, config)
	name := digest.FromBytes(data).Encoded() + ".json"
	writeFile(t, dir, name, string(data))
	writeFile(t, dir, "layer.tar", string(layer))
	writeFile(t, dir, "manifest.json", string(marshal(t, []map[string]any{
		{"Config": name, "RepoTags": []string{"whatever:v9"}, "Layers": []string{"layer.tar"}},
	})))
	return pack(t, dir)
}

func TestLoad(t *testing.T) {
	r := newRig(t)
	layer := files(t, "f", "loaded")
	layout := writeLayout(t, layer, "some:v1")
	two := writeLayout(t, layer, "docker.io/library/two:v1", "docker.io/library/two:v2")
	packed := pack(t, layout)
	content, err := os.ReadFile(packed)
	if err != nil {
		t.Fatal(err)
	}
	zipped, _ := squeeze(t, layerSpec{content, "gzip"})
	for name, tt := range map[string]struct {
		path    string
		digests int
	}{
		"layout":     {layout, 1},
		"archive":    {packed, 1},
		"archive-gz": {writeFile(t, t.TempDir(), "image.tar.gz", string(zipped)), 1},
		"docker":     {writeDockerArchive(t, layer), 0},
		"two:v2":     {two, 1},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := r.service.Load(t.Context(), tt.path, name)
			if err != nil {
				t.Fatal(err)
			}
			img, err := r.service.Resolve(name)
			if err != nil || img.ID != id || len(img.RepoTags) != 1 || len(img.RepoDigests) != tt.digests {
				t.Errorf("image = %+v, %v", img, err)
			}
			if strings.HasPrefix(name, "two") && !strings.HasSuffix(img.Author, ":v2") {
				t.Errorf("loaded %s", img.Author)
			}
			if err := r.service.Remove(t.Context(), id, nil); err != nil {
				t.Error(err)
			}
		})
	}
	r.wantNothing()
	for name, path := range map[string]string{
		"several, none of that name": two,
		"no archive":                 writeFile(t, t.TempDir(), "x", strings.Repeat("nonsense", 100)),
		"an archive of other things": pack(t, filepath.Dir(writeFile(t, t.TempDir(), "x", "y"))),
		"empty directory":            t.TempDir(),
	} {
		if _, err := r.service.Load(t.Context(), path, "a:b"); !errors.Is(err, ErrInvalidImage) {
			t.Errorf("%s: err = %v, want ErrInvalidImage", name, err)
		}
	}
	if _, err := r.service.Load(t.Context(), "/nonexistent", "a:b"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := r.service.Load(t.Context(), layout, "a@"+someDigest); !errors.Is(err, ErrInvalidName) {
		t.Errorf("a digest for a name: %v", err)
	}
	r.wantNothing()
}
