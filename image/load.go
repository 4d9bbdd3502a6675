package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	dockerarchive "github.com/containers/image/v5/docker/archive"
	ociarchive "github.com/containers/image/v5/oci/archive"
	ocilayout "github.com/containers/image/v5/oci/layout"
	"github.com/containers/image/v5/types"
	"github.com/distribution/reference"
)

// Load puts an image from an OCI layout directory or OCI/Docker archive file into the store under name. Whoever may
// name a path is trusted, so the signature policy is not asked. If the file holds several images, name says which.
func (s *Service) Load(ctx context.Context, path, name string) (id string, err error) {
	named, err := parseName(name)
	if err != nil {
		return "", err
	}
	tagged, ok := named.(reference.NamedTagged)
	if !ok {
		return "", fmt.Errorf("%w: %s: a loaded image needs a tag, not a digest", ErrInvalidName, named)
	}
	id, err = s.load(ctx, path, tagged)
	if err != nil {
		return "", fmt.Errorf("image %s: load %s: %w", named, path, classify(err))
	}
	return id, nil
}

func (s *Service) load(ctx context.Context, path string, named reference.NamedTagged) (string, error) {
	format, err := detect(path)
	if err != nil {
		return "", err
	}
	j := &job{service: s, sys: s.systemContext(credentials{}), name: named.String(), started: time.Now()}
	defer j.show()()
	if j.src, err = openFile(ctx, j.sys, path, format, named); err != nil {
		return "", err
	}
	return j.run(ctx, false, func(d *description) []string {
		if format == dockerArchive { // its manifest is made up by us, and has a digest that no registry knows
			return []string{named.String()}
		}
		return pulledNames(named, d)
	})
}

// format is a way to keep an image in files.
type format int

const (
	ociDir format = iota
	ociArchive
	dockerArchive
)

// detect looks at what is there. An archive with both sets of files, as newer Docker versions write, is taken as OCI.
func detect(file string) (format, error) {
	st, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	if st.IsDir() {
		return ociDir, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	plain, err := decompress(bufio.NewReader(f))
	if err != nil {
		return 0, err
	}
	defer plain.Close()
	found := format(-1)
	for tr := tar.NewReader(plain); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("%w: not an archive: %w", ErrInvalidImage, err)
		}
		switch path.Clean(hdr.Name) {
		case "oci-layout":
			return ociArchive, nil
		case "manifest.json":
			found = dockerArchive
		}
	}
	if found < 0 {
		return 0, fmt.Errorf("%w: it has neither oci-layout nor manifest.json", ErrInvalidImage)
	}
	return found, nil
}

func openFile(ctx context.Context, sys *types.SystemContext, path string, f format, named reference.NamedTagged) (*source, error) {
	var src types.ImageSource
	var firstErr error
	// First the only image that is there, whatever it is called; then the one of that name.
	for _, which := range []string{"", named.String(), reference.FamiliarString(named), named.Tag()} {
		ref, err := fileReference(path, f, which, named)
		if err == nil {
			src, err = ref.NewImageSource(ctx, sys)
		}
		if err == nil && f != dockerArchive {
			_, _, err = src.GetManifest(ctx, nil) // an archive without that name opens, but has no manifest
			if err != nil {
				err = errors.Join(err, src.Close())
			}
		}
		if err == nil {
			return newSource(src), nil
		}
		if firstErr == nil {
			firstErr = err
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrInvalidImage, firstErr)
}

func fileReference(path string, f format, which string, named reference.NamedTagged) (types.ImageReference, error) {
	switch f {
	case ociDir:
		return ocilayout.NewReference(path, which)
	case ociArchive:
		return ociarchive.NewReference(path, which)
	}
	if which == "" {
		return dockerarchive.NewReference(path, nil)
	}
	return dockerarchive.NewReference(path, named)
}
