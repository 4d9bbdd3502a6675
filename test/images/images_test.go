package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

func small(t *testing.T, f Format, arch string) *Image {
	t.Helper()
	l, err := newLayer("small").text("a/b/c", "content\n").link("l", "a").layer()
	if err != nil {
		t.Fatal(err)
	}
	img, err := Assemble(f, imgspec.ImageConfig{Cmd: []string{"/x"}}, arch, l)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestSaveThenLoad(t *testing.T) {
	for name, img := range map[string]*Image{
		"oci":    small(t, Format{}, ""),
		"docker": small(t, Format{Docker: true}, ""),
		"zstd":   small(t, Format{Zstd: true}, ""),
		"index":  Index(Format{}, small(t, Format{}, "s390x"), small(t, Format{}, "")),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := img.Save(dir, name); err != nil {
				t.Fatal(err)
			}
			back, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			if back.Root.Digest != img.Root.Digest || back.Root.MediaType != img.Root.MediaType || back.Size() != img.Size() {
				t.Errorf("loaded %+v, %d bytes; saved %+v, %d bytes", back.Root.Descriptor, back.Size(), img.Root.Descriptor, img.Size())
			}
			want, err := img.ConfigID()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := back.ConfigID(); got != want || err != nil {
				t.Errorf("config ID of the loaded image: %s, %v; want %s", got, err, want)
			}
		})
	}
}

func TestSaveRefusesWrongContent(t *testing.T) {
	img := small(t, Format{}, "")
	img.Blobs[0].Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("other")), nil }
	if err := img.Save(t.TempDir(), "x"); err == nil {
		t.Error("a blob with another digest than its own was saved")
	}
}

func TestReconfigure(t *testing.T) {
	for name, img := range map[string]*Image{
		"image": small(t, Format{}, ""),
		"index": Index(Format{}, small(t, Format{}, "s390x"), small(t, Format{}, "")),
	} {
		changed, err := img.Reconfigure(func(c *imgspec.ImageConfig) { c.User = "sailor" })
		if err != nil {
			t.Fatal(err)
		}
		before, _ := img.ConfigID()
		after, err := changed.ConfigID()
		if err != nil || before == after {
			t.Errorf("%s: config ID %s before, %s after: %v", name, before, after, err)
		}
		if err := changed.Save(t.TempDir(), "x"); err != nil {
			t.Errorf("%s: the changed image does not hold together: %v", name, err)
		}
	}
}

func TestCopyTarMergesUsr(t *testing.T) {
	var in bytes.Buffer
	tw := tar.NewWriter(&in)
	for _, name := range []string{"./bin/tool", "./usr/share/doc/tool/README", "./usr/lib/x"} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	b := newLayer("x").usr()
	if err := b.copyTar(&in); err != nil {
		t.Fatal(err)
	}
	l, err := b.layer()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		"usr/", "usr/bin/", "bin", "usr/sbin/", "sbin", "usr/lib/", "lib", "usr/lib64/", "lib64", "usr/bin/tool", "usr/lib/x",
	}, names(t, bytes.NewReader(l.Tar))); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func names(t *testing.T, r io.Reader) []string {
	t.Helper()
	var all []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
}

func TestPlannedFindsEscapedVersions(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "libgmp10_2%3a6.2.1+dfsg1-1.1_amd64.deb")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	plan := "Inst libgmp10 (2:6.2.1+dfsg1-1.1 Debian:12.15/oldstable [amd64])\nConf libgmp10 (2:6.2.1)\n"
	got, err := planned(plan, dir)
	if diff := cmp.Diff([]string{file}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := planned("Inst other (1 Debian [amd64])\n", dir); err == nil {
		t.Error("a package that was not downloaded is no error")
	}
}

// The bomb must be what it says, or the test of a limit tests nothing.
func TestBombIsBigInside(t *testing.T) {
	img, err := bombImage(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	r, err := img.Blobs[1].Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	zip, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, zip)
	if err != nil || n < 8<<20 || img.Blobs[1].Size > 64<<10 {
		t.Errorf("%d bytes packed are %d unpacked, %v", img.Blobs[1].Size, n, err)
	}
}
