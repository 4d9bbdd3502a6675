package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Hostile is an image that must be refused, or unpacked harmlessly.
type Hostile struct {
	Name string
	*Image
	// Harmless: a pull may succeed, if nothing outside the image's root was touched.
	Harmless bool
}

// Escaped is the path that hostile layers try to write on the host.
const Escaped = "/tmp/orlop-test-escaped"

// HostileImages are one image for each trick. Small tells the largest unpacked size that the runtime accepts, so that
// a bomb need not be big.
func HostileImages(small int64) ([]Hostile, error) {
	traversal := strings.Repeat("../", 12) + strings.TrimPrefix(Escaped, "/")
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}
	}
	var all []Hostile
	for _, tt := range []struct {
		name     string
		entries  []tar.Header
		harmless bool
	}{
		{"dotdot", []tar.Header{file(traversal)}, true},
		{"absolute", []tar.Header{file(Escaped)}, true},
		{"symlink", []tar.Header{link("out", "/tmp"), file("out/orlop-test-escaped")}, true},
		{"symlink-up", []tar.Header{link("out", strings.Repeat("../", 12)+"tmp"), file("out/orlop-test-escaped")}, true},
		{"hardlink", []tar.Header{{Typeflag: tar.TypeLink, Name: "pw", Linkname: strings.Repeat("../", 12) + "etc/hostname"}}, true},
		{"whiteout", []tar.Header{file(strings.Repeat("../", 12) + "tmp/.wh.orlop-test-kept")}, true},
	} {
		b := newLayer(tt.name)
		for _, h := range tt.entries {
			var content []byte
			if h.Typeflag == tar.TypeReg {
				content = []byte("escaped\n")
			}
			b.add(h, content)
		}
		img, err := b.image()
		if err != nil {
			return nil, err
		}
		all = append(all, Hostile{tt.name, img, tt.harmless})
	}
	broken, err := brokenImages()
	if err != nil {
		return nil, err
	}
	bomb, err := bombImage(small * 2)
	if err != nil {
		return nil, err
	}
	return append(append(all, broken...), Hostile{"bomb", bomb, false}), nil
}

func (b *builder) image() (*Image, error) {
	l, err := b.layer()
	if err != nil {
		return nil, err
	}
	return Assemble(Format{}, imgspec.ImageConfig{Cmd: []string{"/none"}}, "", l)
}

// bombImage is a layer of size zero bytes, which compress a thousandfold.
func bombImage(size int64) (*Image, error) {
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	diff := digest.SHA256.Digester()
	tw := tar.NewWriter(io.MultiWriter(zip, diff.Hash()))
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zero", Mode: 0o644, Size: size}); err != nil {
		return nil, err
	}
	if _, err := io.CopyN(tw, zeros{}, size); err != nil {
		return nil, err
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	img, err := newLayer("bomb").text("x", "x").image()
	if err != nil {
		return nil, err
	}
	return img.withLayer(Bytes(imgspec.MediaTypeImageLayerGzip, packed.Bytes()), diff.Digest())
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// withLayer replaces the only layer.
func (img *Image) withLayer(layer Blob, diffID digest.Digest) (*Image, error) {
	var m imgspec.Manifest
	if err := img.Root.decode(&m); err != nil {
		return nil, err
	}
	var full imgspec.Image
	for _, b := range img.Blobs {
		if b.Digest == m.Config.Digest {
			if err := b.decode(&full); err != nil {
				return nil, err
			}
		}
	}
	full.RootFS.DiffIDs = []digest.Digest{diffID}
	config := JSON(imgspec.MediaTypeImageConfig, full)
	m.Config, m.Layers = config.Descriptor, []imgspec.Descriptor{layer.Descriptor}
	root := JSON(imgspec.MediaTypeImageManifest, m)
	return &Image{Root: root, Blobs: []Blob{config, layer}}, nil
}

// brokenImages lie about what they are.
func brokenImages() ([]Hostile, error) {
	honest, err := newLayer("honest").text("x", "some content\n").image()
	if err != nil {
		return nil, err
	}
	wrongBlob := *honest
	wrongBlob.Blobs = append([]Blob(nil), honest.Blobs...)
	for i, b := range wrongBlob.Blobs {
		if b.MediaType == imgspec.MediaTypeImageLayerGzip {
			other := Bytes(b.MediaType, bytes.Repeat([]byte{'x'}, int(b.Size)))
			other.Digest = b.Digest
			wrongBlob.Blobs[i] = other
		}
	}
	unzipped, err := honest.withLayer(Bytes(imgspec.MediaTypeImageLayerGzip, []byte("this is not gzip")), digest.FromString("x"))
	if err != nil {
		return nil, err
	}
	wrongDiff, err := newLayer("other").text("y", "other content\n").image()
	if err != nil {
		return nil, err
	}
	for _, b := range wrongDiff.Blobs {
		if b.MediaType == imgspec.MediaTypeImageLayerGzip {
			if wrongDiff, err = honest.withLayer(b, digest.FromString("not this")); err != nil {
				return nil, err
			}
		}
	}
	return []Hostile{
		{"wrong-digest", &wrongBlob, false},
		{"wrong-diff-id", wrongDiff, false},
		{"not-gzip", unzipped, false},
		{"giant-manifest", &Image{Root: Bytes(imgspec.MediaTypeImageManifest, bytes.Repeat([]byte(" "), 64<<20))}, false},
		{"deep-manifest", &Image{Root: Bytes(imgspec.MediaTypeImageManifest, bytes.Repeat([]byte("["), 1<<20))}, false},
		{"no-json", &Image{Root: Bytes(imgspec.MediaTypeImageManifest, []byte("<html>not found</html>"))}, false},
		{"schema1", &Image{Root: Bytes("application/vnd.docker.distribution.manifest.v1+json", []byte(`{"schemaVersion":1}`))}, false},
		{"index-of-itself", selfIndex(), false},
		{"only-foreign", Index(Format{}, foreign(honest)), false},
	}, nil
}

// selfIndex names a manifest that nobody has.
func selfIndex() *Image {
	return &Image{Root: JSON(imgspec.MediaTypeImageIndex, imgspec.Index{Manifests: []imgspec.Descriptor{{
		MediaType: imgspec.MediaTypeImageIndex, Digest: digest.FromString("nobody has it"), Size: 13,
		Platform: &imgspec.Platform{OS: "linux", Architecture: "amd64"},
	}}})}
}

// foreign is the image for an architecture that this machine is not.
func foreign(img *Image) *Image {
	other := *img
	other.Root.Platform = &imgspec.Platform{OS: "linux", Architecture: "s390x"}
	return &other
}
