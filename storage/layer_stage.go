package storage

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	graphdriver "github.com/containers/storage/drivers"
	"github.com/containers/storage/pkg/archive"
	"github.com/opencontainers/go-digest"

	"github.com/orlop/orlop/storage/untar"
)

// Budget is a number of bytes that the layers of one image may unpack to, together.
type Budget = untar.Budget

// NewBudget allows limitBytes; zero or less is unlimited.
func NewBudget(limitBytes int64) *Budget { return untar.NewBudget(limitBytes) }

// LayerSource is a layer to unpack.
type LayerSource struct {
	// Tar is the uncompressed archive. It is read to its end.
	Tar io.Reader
	// DiffID is the digest that Tar must have.
	DiffID digest.Digest
	// Blob is the digest of the compressed form, for the record.
	Blob digest.Digest
	// Budget is shared with the image's other layers; nil for none.
	Budget *Budget
	// MinFreeBytes is what must stay free on the disk.
	MinFreeBytes int64
}

// StagedLayer is an unpacked layer that is not in the store yet. CommitImage puts it there; Discard must be called
// in any case.
type StagedLayer struct {
	diffID  digest.Digest
	implied []string
	store   *Store

	mu     sync.Mutex
	output *graphdriver.DriverWithDifferOutput // nil once it is committed or discarded
}

// layerFacts is kept in the metadata of a layer's record.
type layerFacts struct {
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
}

// StageLayer unpacks a layer into a directory of its own. Any number may run at a time: no lock is held meanwhile.
// Errors are ErrInvalidLayer, ErrLimit, those of the reader, and those of the disk; nothing is left after one.
func (s *Store) StageLayer(ctx context.Context, src LayerSource) (*StagedLayer, error) {
	if err := src.DiffID.Validate(); err != nil || src.DiffID.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("%w: diff ID %q is not a SHA-256 digest", ErrInvalidLayer, src.DiffID)
	}
	d := &differ{ctx: ctx, src: src}
	output, err := s.store.PrepareStagedLayer(nil, d)
	if err != nil {
		if output != nil && output.Target != "" {
			err = errors.Join(err, s.store.CleanupStagedLayer(output))
		}
		return nil, fmt.Errorf("layer %s: %w", src.DiffID, layerError(err))
	}
	return &StagedLayer{diffID: src.DiffID, implied: d.implied, store: s, output: output}, nil
}

// layerError gives the errors of untar this package's names.
func layerError(err error) error {
	switch {
	case errors.Is(err, untar.ErrLimit):
		return fmt.Errorf("%w: %w", ErrLimit, err)
	case errors.Is(err, untar.ErrInvalid):
		return fmt.Errorf("%w: %w", ErrInvalidLayer, err)
	}
	return err
}

// Discard removes what was staged, unless it was committed. It may be repeated.
func (l *StagedLayer) Discard() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.output == nil {
		return nil
	}
	output := l.output
	l.output = nil
	if err := l.store.store.CleanupStagedLayer(output); err != nil {
		return fmt.Errorf("layer %s: discard: %w", l.diffID, err)
	}
	return nil
}

// take hands over the staged directory, once; nil if it is gone.
func (l *StagedLayer) take() *graphdriver.DriverWithDifferOutput {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	output := l.output
	l.output = nil
	return output
}

// differ is our unpacker in the form in which containers/storage calls it, with the directory to unpack into. The
// library's own differs make partial pulls; to the store it does not matter where the files come from, as long as
// the digests in the record are those of the layer. There is no tar-split record: it serves to push a layer again
// bit by bit, which a node does not do.
type differ struct {
	ctx     context.Context // of the one StageLayer call that this value serves
	src     LayerSource
	implied []string
}

func (d *differ) Close() error { return nil }

func (d *differ) ApplyDiff(dest string, _ *archive.TarOptions, _ *graphdriver.DifferOptions) (graphdriver.DriverWithDifferOutput, error) {
	var none graphdriver.DriverWithDifferOutput
	hashed := &hashReader{r: d.src.Tar, hash: sha256.New()}
	result, err := untar.Unpack(d.ctx, dest, hashed, untar.Options{
		Budget:       d.src.Budget,
		MinFreeBytes: d.src.MinFreeBytes,
	})
	if err != nil {
		return none, err
	}
	// The digest covers what stands behind the end marker too; some tools pad there.
	if _, err := io.Copy(io.Discard, hashed); err != nil {
		return none, err
	}
	if got := digest.NewDigest(digest.SHA256, hashed.hash); got != d.src.DiffID {
		return none, fmt.Errorf("%w: the content's digest is %s", ErrInvalidLayer, got)
	}
	facts, err := json.Marshal(layerFacts{result.Bytes, result.Inodes})
	if err != nil {
		return none, err
	}
	d.implied = result.Implied
	// Without a mode here the driver would give the root that of the layer below, also if this layer describes it.
	root, err := os.Stat(dest)
	if err != nil {
		return none, err
	}
	mode := root.Mode()
	return graphdriver.DriverWithDifferOutput{
		RootDirMode:        &mode,
		Differ:             d,
		Size:               hashed.bytes,
		UIDs:               result.UIDs,
		GIDs:               result.GIDs,
		UncompressedDigest: d.src.DiffID,
		CompressedDigest:   d.src.Blob,
		Metadata:           string(facts),
	}, nil
}

type hashReader struct {
	r     io.Reader
	hash  hash.Hash
	bytes int64
}

func (h *hashReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	h.bytes += int64(n)
	return n, err
}
