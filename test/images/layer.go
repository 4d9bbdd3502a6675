package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is a tar archive.
type Layer struct {
	Name string
	Tar  []byte
}

// epoch is the time of all files, so that the same content always has the same digest.
var epoch = time.Unix(1700000000, 0).UTC()

// builder writes a layer. Parents of what is added are made as needed. The first error sticks.
type builder struct {
	name string
	buf  bytes.Buffer
	tw   *tar.Writer
	have map[string]bool
	err  error
}

func newLayer(name string) *builder {
	b := &builder{name: name, have: map[string]bool{"": true, ".": true}}
	b.tw = tar.NewWriter(&b.buf)
	return b
}

func (b *builder) layer() (Layer, error) {
	if b.err == nil {
		b.err = b.tw.Close()
	}
	if b.err != nil {
		return Layer{}, fmt.Errorf("layer %s: %w", b.name, b.err)
	}
	return Layer{Name: b.name, Tar: b.buf.Bytes()}, nil
}

// add writes an entry as it is: hostile layers need that.
func (b *builder) add(h tar.Header, content []byte) *builder {
	if b.err != nil {
		return b
	}
	h.ModTime = epoch
	h.Size = int64(len(content))
	h.Format = tar.FormatPAX
	if b.err = b.tw.WriteHeader(&h); b.err == nil {
		_, b.err = b.tw.Write(content)
	}
	b.have[strings.Trim(h.Name, "/")] = true
	return b
}

func (b *builder) parents(name string) {
	dir := path.Dir(strings.Trim(name, "/"))
	if b.have[dir] {
		return
	}
	b.parents(dir)
	b.add(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, nil)
}

func (b *builder) file(name string, mode int64, content []byte) *builder {
	b.parents(name)
	return b.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
}

func (b *builder) text(name, content string) *builder { return b.file(name, 0o644, []byte(content)) }

func (b *builder) link(name, target string) *builder {
	b.parents(name)
	return b.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func (b *builder) dir(name string, mode int64) *builder {
	b.parents(name)
	return b.add(tar.Header{Typeflag: tar.TypeDir, Name: strings.Trim(name, "/") + "/", Mode: mode}, nil)
}

// merged are directories that are links into /usr on all supported Debian releases; packages of Debian 12 still
// have files in them.
var merged = []string{"bin", "sbin", "lib", "lib64"}

// usr makes the links of a merged /usr.
func (b *builder) usr() *builder {
	for _, d := range merged {
		b.dir("usr/"+d, 0o755)
		b.link(d, "usr/"+d)
	}
	return b
}

// skipped is what a container has no use for; it would make the image twice as big.
var skipped = []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/"}

// copyTar adds the files of another archive below the merged /usr.
func (b *builder) copyTar(r io.Reader) error {
	tr := tar.NewReader(r)
	for b.err == nil {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return b.err
		}
		if err != nil {
			return err
		}
		name := usrPath(h.Name)
		if name == "." || skip(name+"/") || h.Typeflag == tar.TypeDir && b.have[name] {
			continue
		}
		if b.have[name] {
			return fmt.Errorf("two packages have /%s", name)
		}
		h.Name = name
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = usrPath(h.Linkname)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			return err
		}
		b.parents(name)
		b.add(*h, content)
	}
	return b.err
}

func usrPath(name string) string {
	name = path.Clean(strings.TrimPrefix(name, "./"))
	for _, d := range merged {
		if name == d || strings.HasPrefix(name, d+"/") {
			return "usr/" + name
		}
	}
	return name
}

func skip(name string) bool {
	for _, s := range skipped {
		if strings.HasPrefix(name, s) {
			return true
		}
	}
	return false
}

func (l Layer) compress(f Format) (Blob, digest.Digest, error) {
	var buf bytes.Buffer
	typ := imgspec.MediaTypeImageLayerGzip
	var w io.WriteCloser = gzip.NewWriter(&buf)
	switch {
	case f.Docker:
		typ = dockerLayer
	case f.Zstd:
		typ = imgspec.MediaTypeImageLayerZstd
		zw, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return Blob{}, "", err
		}
		w = zw
	}
	if _, err := w.Write(l.Tar); err != nil {
		return Blob{}, "", err
	}
	if err := w.Close(); err != nil {
		return Blob{}, "", err
	}
	return Bytes(typ, buf.Bytes()), digest.FromBytes(l.Tar), nil
}
