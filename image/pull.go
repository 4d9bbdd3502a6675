package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/types"
	"github.com/distribution/reference"
	"golang.org/x/sync/errgroup"

	"github.com/orlop/orlop/storage"
)

// Pull fetches an image unless all of it is there, and returns its ID. Pulls of the same name and credentials at the
// same time are one, which goes on until all of its callers have left; pulls of the same layer at the same time
// share it. The registry is always asked for the manifest, so a tag that moved is followed and credentials are
// checked even if the image is there. After an error or a cancellation nothing of the pull is left.
func (s *Service) Pull(ctx context.Context, name string, auth *Auth) (id string, err error) {
	named, err := parseName(name)
	if err != nil {
		return "", err
	}
	f, _ := s.pulls.join(named.String()+"\x00"+auth.key(), func(ctx context.Context) (string, error) {
		return s.pull(ctx, named, auth)
	})
	defer f.leave()
	id, err = f.wait(ctx)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", named, classify(err))
	}
	return id, nil
}

func (s *Service) pull(ctx context.Context, named reference.Named, auth *Auth) (string, error) {
	login, err := auth.credentialsFor(named)
	if err != nil {
		return "", err
	}
	j := &job{service: s, sys: s.systemContext(login), name: named.String(), started: time.Now()}
	defer j.show()()
	patient, stop := s.withPatience(ctx)
	j.src, err = s.openRegistry(patient, named, j.sys)
	stop()
	if err != nil {
		return "", err
	}
	return j.run(ctx, true, func(d *description) []string { return pulledNames(named, d) })
}

// pulledNames are the names that an image gets by a pull: the name itself, and the digests of the manifest and of
// the index above it.
func pulledNames(named reference.Named, d *description) []string {
	names := []string{named.String()}
	repo := reference.TrimNamed(named)
	for _, dig := range []string{d.topDigest.String(), d.manifestDigest.String()} {
		if n := repo.Name() + "@" + dig; !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// withPatience ends requests for small documents that take longer than a stalled layer may.
func (s *Service) withPatience(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.cfg.StallTimeout, errStalled)
}

// job is one image on its way into the store.
type job struct {
	service *Service
	sys     *types.SystemContext
	src     *source
	name    string
	started time.Time

	desc   *description
	budget *storage.Budget
	serial sync.Mutex // for sources that give out one blob at a time
	slots  chan struct{}

	totalBytes, doneBytes atomic.Int64 // of the compressed layers that this job fetches
}

// Progress is how far a pull is.
type Progress struct {
	Name    string
	Started time.Time
	// DoneBytes of TotalBytes have come from the registry; both are compressed, and leave out layers that were in
	// the store or come with another pull. TotalBytes is 0 until the manifest is known.
	DoneBytes, TotalBytes int64
}

// Pulls returns the pulls that are under way, the oldest first.
func (s *Service) Pulls() []Progress {
	s.activeMu.Lock()
	defer s.activeMu.Unlock()
	var out []Progress
	for j := range s.active {
		out = append(out, Progress{j.name, j.started, j.doneBytes.Load(), j.totalBytes.Load()})
	}
	slices.SortFunc(out, func(a, b Progress) int { return a.Started.Compare(b.Started) })
	return out
}

// show lists the job among the pulls that are under way, until what it returns is called.
func (j *job) show() (hide func()) {
	s := j.service
	s.activeMu.Lock()
	s.active[j] = struct{}{}
	s.activeMu.Unlock()
	return func() {
		s.activeMu.Lock()
		delete(s.active, j)
		s.activeMu.Unlock()
	}
}

// run brings the image of j.src into the store under the names that names chooses, and releases j.src.
func (j *job) run(ctx context.Context, ask bool, names func(*description) []string) (id string, err error) {
	s := j.service
	defer func() {
		if closeErr := j.src.release(); closeErr != nil {
			s.log.Warn("image source does not close", "image", j.name, "err", closeErr)
		}
	}()
	if err := j.describe(ctx, ask); err != nil {
		return "", err
	}
	want := names(j.desc)
	if s.complete(j.desc.id, want) {
		return j.desc.id, nil
	}
	const attempts = 3
	for range attempts {
		// A layer may be removed with its last image between our look and the commit; then it is fetched after all.
		if err = j.fetch(ctx, want); !errors.Is(err, storage.ErrLayerGone) {
			break
		}
	}
	if err != nil {
		return "", err
	}
	s.log.Info("image pulled", "image", j.name, "id", j.desc.id, "dur", time.Since(j.started),
		"bytes", j.doneBytes.Load())
	return j.desc.id, nil
}

func (j *job) describe(ctx context.Context, ask bool) error {
	s := j.service
	patient, stop := s.withPatience(ctx)
	defer stop()
	desc, unparsed, err := s.describe(patient, j.src, j.sys)
	if err != nil {
		return j.stalled(patient, err)
	}
	j.desc = desc
	if !ask {
		return nil
	}
	return s.allowed(patient, j.sys, unparsed)
}

// stalled gives the cause of a context that ended in place of what the library made of it.
func (j *job) stalled(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}

// complete says whether the image is in the store with all of its names.
func (s *Service) complete(id string, names []string) bool {
	img, ok := s.index.Load().byID[id]
	if !ok {
		return false
	}
	for _, n := range names {
		if !slices.Contains(img.RepoTags, n) && !slices.Contains(img.RepoDigests, n) {
			return false
		}
	}
	return true
}

// fetch stages the layers that are missing, all at once, and commits the image when all are there.
func (j *job) fetch(ctx context.Context, names []string) error {
	s := j.service
	j.budget = storage.NewBudget(s.cfg.MaxUnpackedBytes)
	j.slots = make(chan struct{}, s.cfg.MaxParallelLayers)
	ids := storage.LayerIDs(j.desc.diffIDs)
	staged := make([]*storage.StagedLayer, len(ids))
	flights := make([]*flight[*storage.StagedLayer], len(ids))
	defer func() {
		for _, f := range flights {
			if f != nil {
				f.leave() // after the commit, which took the layers; after an error this discards them
			}
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	for i, id := range ids {
		if s.store.HasLayer(id) {
			continue
		}
		g.Go(func() (err error) {
			flights[i], staged[i], err = j.layer(ctx, i, id)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.changeMu.Lock()
	defer s.changeMu.Unlock()
	err := s.store.CommitImage(storage.ImageRecord{
		ID:             j.desc.id,
		Names:          names,
		DiffIDs:        j.desc.diffIDs,
		Config:         j.desc.config,
		Manifest:       j.desc.manifest,
		ManifestDigest: j.desc.manifestDigest,
		Created:        time.Now(),
	}, staged)
	if err != nil {
		return err
	}
	return s.refreshLocked(j.desc.id)
}

// layer stages one layer, or joins a pull that does. When that other pull fails, the reason may be its own (its
// registry, its budget, its claims of what the layer is), so this one tries for itself.
func (j *job) layer(ctx context.Context, i int, id string) (*flight[*storage.StagedLayer], *storage.StagedLayer, error) {
	for {
		src := j.src.retain()
		f, begun := j.service.layers.join(id, func(ctx context.Context) (*storage.StagedLayer, error) {
			defer src.release()
			return j.stageLayer(ctx, i)
		})
		if !begun {
			src.release()
		}
		staged, err := f.wait(ctx)
		if err == nil {
			return f, staged, nil
		}
		f.leave()
		if begun || ctx.Err() != nil {
			return nil, nil, err
		}
	}
}

// retryDelays are the pauses before further attempts at a layer whose registry failed.
var retryDelays = []time.Duration{200 * time.Millisecond, time.Second}

func (j *job) stageLayer(ctx context.Context, i int) (*storage.StagedLayer, error) {
	s := j.service
	// The image's own first: those who wait for it must not keep others out.
	for _, slots := range []chan struct{}{j.slots, s.slots} {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if size := j.desc.blobs[i].Size; size > 0 {
		j.totalBytes.Add(size)
	}
	for attempt := 0; ; attempt++ {
		staged, err := j.stageOnce(ctx, i)
		err = classify(err)
		if err == nil || attempt == len(retryDelays) || !errors.Is(err, ErrUnavailable) {
			return staged, err
		}
		s.log.Info("layer is tried again", "image", j.name, "layer", j.desc.blobs[i].Digest, "err", err)
		pause := time.NewTimer(retryDelays[attempt])
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, ctx.Err()
		}
	}
}

// stageOnce is the whole way of a layer: registry, digest, decompression, diff ID, files.
func (j *job) stageOnce(ctx context.Context, i int) (_ *storage.StagedLayer, err error) {
	s := j.service
	if !j.src.HasThreadSafeGetBlob() {
		j.serial.Lock()
		defer j.serial.Unlock()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var fetched int64
	defer func() {
		if err != nil {
			err = j.stalled(ctx, err)
			j.doneBytes.Add(-fetched)
		}
	}()
	guard := newStallGuard(s.cfg.StallTimeout, cancel)
	defer guard.timer.Stop()
	blob := j.desc.blobs[i]
	// Not the whole BlobInfo: it may name URLs of the image's choice to fetch from.
	body, _, err := j.src.GetBlob(ctx, types.BlobInfo{Digest: blob.Digest, Size: blob.Size}, none.NoCache)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", blob.Digest, err)
	}
	guard.r = body
	plain, err := decompress(newVerifier(guard, blob.Digest, blob.Size, func(n int) {
		fetched += int64(n)
		j.doneBytes.Add(int64(n))
	}))
	if err != nil {
		body.Close()
		return nil, fmt.Errorf("layer %s: %w", blob.Digest, err)
	}
	ahead := newReadAhead(plain)
	defer func() {
		cancel(nil) // ends a read that waits for the network, so that Close can wait for the reader
		ahead.Close()
		plain.Close()
		body.Close() // last: it may not be closed under a read
	}()
	staged, err := s.store.StageLayer(ctx, storage.LayerSource{
		Tar:          ahead,
		DiffID:       j.desc.diffIDs[i],
		Blob:         blob.Digest,
		Budget:       j.budget,
		MinFreeBytes: s.cfg.MinFreeBytes,
	})
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", blob.Digest, err)
	}
	return staged, nil
}
