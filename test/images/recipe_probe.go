package images

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// probeBinary builds the probe program; the go command's own cache makes a repeat cheap.
func probeBinary(ctx context.Context, cache, arch string) ([]byte, error) {
	path := filepath.Join(cache, fmt.Sprintf("probe-%s-%d", arch, os.Getpid()))
	defer os.Remove(path)
	_, err := run(ctx, "env", "CGO_ENABLED=0", "GOARCH="+arch, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path,
		"github.com/orlop/orlop/test/images/probe")
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func probeKey(ctx context.Context, cache string) (string, error) {
	raw, err := probeBinary(ctx, cache, runtime.GOARCH)
	return fmt.Sprintf("probe 2 %x", sha256.Sum256(raw)), err
}

const passwd = `root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
sailor:x:1000:1000:Sailor:/home/sailor:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
`

const group = `root:x:0:
tty:x:5:
www-data:x:33:
sailor:x:1000:
crew:x:2000:sailor
hold:x:2001:sailor,nobody
nogroup:x:65534:
`

// probe is the image that most tests use: busybox from the distribution, the probe program, and users.
func probe(ctx context.Context, cache string, f Format, arch string) (*Image, error) {
	base, err := busybox(ctx, cache)
	if err != nil {
		return nil, err
	}
	binary, err := probeBinary(ctx, cache, arch)
	if err != nil {
		return nil, err
	}
	b := newLayer("probe")
	b.file("probe", 0o755, binary).text("etc/passwd", passwd).text("etc/group", group)
	b.dir("tmp", 0o1777).dir("root", 0o700).dir("proc", 0o555).dir("sys", 0o555).dir("dev", 0o755).dir("home/sailor", 0o755)
	b.text("data/in-image", "from the image\n").text("data/sub/file", "in a subdirectory\n")
	top, err := b.layer()
	if err != nil {
		return nil, err
	}
	return Assemble(f, imgspec.ImageConfig{
		Entrypoint: []string{"/probe"}, Cmd: []string{"sleep"},
		Env: []string{"PATH=/usr/local/bin:/bin:/", "FROM_IMAGE=yes"}, Labels: map[string]string{"kind": "probe"},
	}, arch, base, top)
}

// busybox is Debian's static one, with links for its commands.
func busybox(ctx context.Context, cache string) (Layer, error) {
	all, err := debs(ctx, cache, "busybox-static")
	if err != nil {
		return Layer{}, err
	}
	files := slices.DeleteFunc(all, func(f string) bool { return !strings.HasPrefix(filepath.Base(f), "busybox-static_") })
	if len(files) != 1 {
		return Layer{}, fmt.Errorf("apt-get gave %d files of busybox-static; want 1", len(files))
	}
	dir, err := os.MkdirTemp(cache, ".busybox-")
	if err != nil {
		return Layer{}, err
	}
	defer os.RemoveAll(dir)
	if _, err := run(ctx, "dpkg-deb", "-x", files[0], dir); err != nil {
		return Layer{}, err
	}
	path := filepath.Join(dir, "bin/busybox")
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(dir, "usr/bin/busybox")
	}
	binary, err := os.ReadFile(path)
	if err != nil {
		return Layer{}, err
	}
	list, err := run(ctx, path, "--list")
	if err != nil {
		return Layer{}, err
	}
	b := newLayer("busybox").file("bin/busybox", 0o755, binary)
	for _, command := range strings.Fields(list) {
		if command != "busybox" {
			b.link("bin/"+command, "busybox")
		}
	}
	return b.layer()
}

// probeIndex has the machine's own architecture last: a runtime that takes the first one fails.
func probeIndex(ctx context.Context, cache string) (*Image, error) {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	foreign, err := probe(ctx, cache, Format{}, other)
	if err != nil {
		return nil, err
	}
	own, err := probe(ctx, cache, Format{}, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	return Index(Format{}, foreign, own), nil
}
