package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// wantNothing checks that no image, no layer and no staging directory is in the store.
func (r *rig) wantNothing() {
	r.t.Helper()
	if images, err := r.service.List(""); err != nil || len(images) > 0 {
		r.t.Errorf("images left: %v, %v", images, err)
	}
	for _, dir := range []string{"overlay/staging", "tmp"} {
		if entries, err := os.ReadDir(filepath.Join(r.storeAt.Root, dir)); err == nil && len(entries) > 0 {
			r.t.Errorf("left in %s: %v", dir, entries)
		}
	}
	entries, err := os.ReadDir(filepath.Join(r.storeAt.Root, "overlay"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "l" && e.Name() != "staging" && e.IsDir() && len(e.Name()) == 64 {
			r.t.Errorf("layer %s is left", e.Name())
		}
	}
	if pulls := r.service.Pulls(); len(pulls) > 0 {
		r.t.Errorf("pulls under way: %v", pulls)
	}
}

// TestHostileImages pulls images that are wrong in one thing each.
func TestHostileImages(t *testing.T) {
	const limit = 1 << 20
	r := newRig(t, func(c *Config) { c.MaxUnpackedBytes = limit })
	good := layerSpec{files(t, "f", "x"), "gzip"}
	climbs := layerSpec{files(t, "../../../../etc/orlop-was-here", "x"), "gzip"}
	manifest := func(edit func(m *imgspec.Manifest)) func(*imgspec.Manifest, *imgspec.Image) {
		return func(m *imgspec.Manifest, _ *imgspec.Image) { edit(m) }
	}
	config := func(edit func(c *imgspec.Image)) func(*imgspec.Manifest, *imgspec.Image) {
		return func(_ *imgspec.Manifest, c *imgspec.Image) { edit(c) }
	}
	for name, tt := range map[string]struct {
		img  testImage
		want error
	}{
		"climbs": {testImage{layers: []layerSpec{good, climbs}}, ErrInvalidImage},
		"bomb":   {testImage{layers: []layerSpec{good, {files(t, "bomb", strings.Repeat("0", 2*limit)), "gzip"}}}, ErrTooLarge},
		"bomb-in-parts": {testImage{layers: []layerSpec{
			{files(t, "a", strings.Repeat("0", limit*2/3)), "gzip"}, {files(t, "b", strings.Repeat("1", limit*2/3)), "gzip"},
		}}, ErrTooLarge},
		"bomb-of-entries": {testImage{layers: []layerSpec{{manyEntries(t, 3000), "zstd"}}}, ErrTooLarge},
		"no-archive":      {testImage{layers: []layerSpec{{bytes.Repeat([]byte("nonsense"), 200), "gzip"}}}, ErrInvalidImage},
		"cut-archive":     {testImage{layers: []layerSpec{{good.tar[:300], "gzip"}}}, ErrInvalidImage},
		"wrong-diff-id": {testImage{layers: []layerSpec{good}, edit: config(func(c *imgspec.Image) {
			c.RootFS.DiffIDs[0] = digest.FromString("other")
		})}, ErrInvalidImage},
		"bad-diff-id": {testImage{layers: []layerSpec{good}, edit: config(func(c *imgspec.Image) {
			c.RootFS.DiffIDs[0] = "sha256:../../x"
		})}, ErrInvalidImage},
		"too-few-diff-ids": {testImage{layers: []layerSpec{good}, edit: config(func(c *imgspec.Image) {
			c.RootFS.DiffIDs = nil
		})}, ErrInvalidImage},
		"windows": {testImage{layers: []layerSpec{good}, edit: config(func(c *imgspec.Image) { c.OS = "windows" })}, ErrInvalidImage},
		"config-too-large": {testImage{layers: []layerSpec{good}, edit: config(func(c *imgspec.Image) {
			c.Author = strings.Repeat("a", maxConfigBytes)
		})}, ErrTooLarge},
		"wrong-size": {testImage{layers: []layerSpec{good}, edit: manifest(func(m *imgspec.Manifest) {
			m.Layers[0].Size--
		})}, ErrInvalidImage},
		"larger-size": {testImage{layers: []layerSpec{good}, edit: manifest(func(m *imgspec.Manifest) {
			m.Layers[0].Size++
		})}, ErrInvalidImage},
		"layer-missing": {testImage{layers: []layerSpec{good}, edit: manifest(func(m *imgspec.Manifest) {
			m.Layers[0].Digest = digest.FromString("missing")
		})}, ErrNotFound},
		"bad-layer-digest": {testImage{layers: []layerSpec{good}, edit: manifest(func(m *imgspec.Manifest) {
			m.Layers[0].Digest = "sha256:.."
		})}, ErrInvalidImage},
		"too-many-layers": {testImage{layers: []layerSpec{good}, edit: func(m *imgspec.Manifest, c *imgspec.Image) {
			for range maxLayers {
				m.Layers = append(m.Layers, m.Layers[0])
				c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, c.RootFS.DiffIDs[0])
			}
		}}, ErrTooLarge},
		"giant-manifest": {testImage{layers: []layerSpec{good}, edit: manifest(func(m *imgspec.Manifest) {
			m.Annotations = map[string]string{"x": strings.Repeat("a", maxManifestBytes)}
		})}, ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			defer func(outer testing.TB) { r.t = outer }(r.t)
			r.t = t
			r.push(name, "v1", tt.img)
			r.wantPull(name, r.host+"/"+name+":v1", nil, tt.want)
			r.wantNothing()
		})
	}
	if _, err := os.Lstat("/etc/orlop-was-here"); err == nil {
		os.Remove("/etc/orlop-was-here")
		t.Fatal("a layer wrote outside")
	}
}

// manyEntries is a layer of n empty files: small on the wire, and expensive on the disk.
func manyEntries(t testing.TB, n int) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for i := range n {
		if err := tw.WriteHeader(&tar.Header{Name: "f" + string(rune('a'+i%26)) + strings.Repeat("x", i/26), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestWrongBlobs has a registry that sends something else than was asked for.
func TestWrongBlobs(t *testing.T) {
	r := newRig(t)
	desc, _ := r.push("app", "v1", small(t))
	config := r.configDigest("app", "v1")
	var other bytes.Buffer
	zw := gzip.NewWriter(&other)
	zw.Write(files(t, "f", "of another layer"))
	zw.Close()
	for name, tt := range map[string]struct {
		match string // part of the path of the requests that get a wrong answer
		skip  string
		ref   string
	}{
		"layer":    {"/blobs/", config, ":v1"},
		"config":   {config, "-", ":v1"},
		"manifest": {"/manifests/", "-", "@" + desc.Digest.String()},
	} {
		r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, tt.match) || strings.Contains(req.URL.Path, tt.skip) {
				return false
			}
			if tt.match == "/manifests/" {
				w.Header().Set("Content-Type", imgspec.MediaTypeImageManifest)
				w.Write([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`))
				return true
			}
			w.Write(other.Bytes())
			return true
		})
		r.wantPull(name, r.host+"/app"+tt.ref, nil, ErrInvalidImage)
	}
	r.wantNothing()
}
