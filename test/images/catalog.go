package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// recipe makes an image. What depends on key is built anew when key changes.
type recipe struct {
	key  func(ctx context.Context, cache string) (string, error)
	make func(ctx context.Context, cache string) (*Image, error)
}

// recipes by the name of the image.
var recipes = map[string]recipe{
	"probe": {probeKey, func(ctx context.Context, c string) (*Image, error) { return probe(ctx, c, Format{}, runtime.GOARCH) }},
	"probe-docker": {probeKey, func(ctx context.Context, c string) (*Image, error) {
		return probe(ctx, c, Format{Docker: true}, runtime.GOARCH)
	}},
	"probe-zstd": {probeKey, func(ctx context.Context, c string) (*Image, error) {
		return probe(ctx, c, Format{Zstd: true}, runtime.GOARCH)
	}},
	"probe-index": {probeKey, probeIndex},
	"nginx":       {fixedKey("nginx 1"), nginx},
	"iptables":    {fixedKey("iptables 1"), iptables},
	"big":         {fixedKey("big 1"), big},
}

// Names are the images that Get makes.
func Names() []string { return slices.Sorted(maps.Keys(recipes)) }

// CacheDir is where images and packages are kept: $ORLOP_TEST_CACHE, else a directory of the user's cache.
func CacheDir() (string, error) {
	if dir := os.Getenv("ORLOP_TEST_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("set ORLOP_TEST_CACHE to a directory for test images: %w", err)
	}
	return filepath.Join(dir, "orlop-test"), nil
}

// Get returns an image, made unless the cache has it. A machine that cannot make images is given layouts by
// ORLOP_TEST_IMAGES, a directory with one for each name.
func Get(ctx context.Context, name string) (*Image, error) {
	if dir := os.Getenv("ORLOP_TEST_IMAGES"); dir != "" {
		return Load(filepath.Join(dir, name))
	}
	r, ok := recipes[name]
	if !ok {
		return nil, fmt.Errorf("no image %q; there are %s", name, strings.Join(Names(), ", "))
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	key, err := r.key(ctx, cache)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	dir := filepath.Join(cache, "images", fmt.Sprintf("%s-%.12x", name, sha256.Sum256([]byte(key))))
	img, err := Load(dir)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return img, err
	}
	if img, err = r.make(ctx, cache); err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return img, keep(img, dir, name)
}

// keep writes a layout that is whole or not there: tests of several packages may do it at a time.
func keep(img *Image, dir, name string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := img.Save(tmp, name); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func fixedKey(key string) func(context.Context, string) (string, error) {
	return func(context.Context, string) (string, error) {
		release, err := os.ReadFile("/etc/os-release")
		return key + "\n" + string(release), err
	}
}
