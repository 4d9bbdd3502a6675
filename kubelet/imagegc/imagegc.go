// Package imagegc removes images that no container uses: those that were not used for long, and while the disk is nearly
// full, those that were not used for the longest time.
package imagegc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// period is how often kubelet looks too.
const period = 5 * time.Minute

// Runtime is what images are found and removed by.
type Runtime struct {
	Images     cri.ImageServiceClient
	Containers cri.RuntimeServiceClient
}

// Config is when images are removed.
type Config struct {
	Runtime
	HighPercent, LowPercent int           // of the disk in use: above the high one, until below the low one; high 100: never
	MinAge                  time.Duration // that an image is left alone after it was first seen
	MaxAge                  time.Duration // after which an image that was not used goes; 0 for never
	Failed                  func(err error)
	Log                     *slog.Logger
}

// Manager collects.
type Manager struct {
	cfg   Config
	usage func(path string) (used, capacity uint64, err error) // of a file system

	mu   sync.Mutex // held while it collects, so that two who want room do not remove the same images
	seen map[string]record
}

// record is what is remembered of an image.
type record struct{ first, used time.Time }

// New makes a Manager.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, usage: diskUsage, seen: map[string]record{}}
}

func diskUsage(path string) (used, capacity uint64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, 0, fmt.Errorf("image file system %s: %w", path, err)
	}
	size := uint64(fs.Bsize)
	return (fs.Blocks - fs.Bavail) * size, fs.Blocks * size, nil
}

// Run collects until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		if err := m.Collect(ctx); err != nil && ctx.Err() == nil {
			m.cfg.Failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Collect removes images that are too old, and makes room if the disk is too full.
func (m *Manager) Collect(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	unused, err := m.unused(ctx)
	if err != nil {
		return err
	}
	unused, err = m.removeOld(ctx, unused)
	if err != nil || m.cfg.HighPercent >= 100 {
		return err
	}
	used, capacity, err := m.disk(ctx)
	if err != nil {
		return err
	}
	if capacity == 0 || used*100/capacity < uint64(m.cfg.HighPercent) {
		return nil
	}
	target := capacity * uint64(m.cfg.LowPercent) / 100
	want := used - min(target, used)
	m.cfg.Log.Info("disk of images is nearly full", "used", used, "capacity", capacity, "toFree", want)
	freed, err := m.free(ctx, unused, want)
	if err == nil && freed < want {
		err = fmt.Errorf("wanted to free %d bytes, but freed %d bytes: no more images are unused for %s", want, freed, m.cfg.MinAge)
	}
	return err
}

// RemoveUnused removes all that is unused, and tells how many bytes that were. It is for a disk that is full.
func (m *Manager) RemoveUnused(ctx context.Context) (freed uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	unused, err := m.unused(ctx)
	if err != nil {
		return 0, err
	}
	return m.free(ctx, unused, ^uint64(0))
}

func (m *Manager) disk(ctx context.Context) (used, capacity uint64, err error) {
	info, err := m.cfg.Images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		return 0, 0, fmt.Errorf("image file system: %w", err)
	}
	if len(info.ImageFilesystems) == 0 {
		return 0, 0, errors.New("image file system: the runtime names none")
	}
	return m.usage(info.ImageFilesystems[0].GetFsId().GetMountpoint())
}

// unused are the images that no container uses, what was used last at the end. It notes what is used now.
func (m *Manager) unused(ctx context.Context) ([]*cri.Image, error) {
	images, err := m.cfg.Images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	containers, err := m.cfg.Containers.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	inUse := map[string]bool{}
	for _, c := range containers.Containers {
		inUse[c.ImageId], inUse[c.ImageRef], inUse[c.GetImage().GetImage()] = true, true, true
	}
	now, seen := time.Now(), map[string]record{}
	var unused []*cri.Image
	for _, i := range images.Images {
		r, known := m.seen[i.Id]
		if !known {
			r = record{first: now}
		}
		if used(i, inUse) {
			r.used = now
		} else if !i.Pinned {
			unused = append(unused, i)
		}
		seen[i.Id] = r
	}
	m.seen = seen
	slices.SortFunc(unused, func(a, b *cri.Image) int {
		x, y := seen[a.Id], seen[b.Id]
		return cmp.Or(x.used.Compare(y.used), x.first.Compare(y.first))
	})
	return m.unmounted(ctx, unused, containers.Containers)
}

// unmounted are the images that no container has as a volume (KEP-4639). That is asked of each container, and so only if there is
// an image that might go.
func (m *Manager) unmounted(ctx context.Context, images []*cri.Image, containers []*cri.Container) ([]*cri.Image, error) {
	if len(images) == 0 {
		return nil, nil
	}
	mounted := map[string]bool{}
	for _, c := range containers {
		reply, err := m.cfg.Containers.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
		if status.Code(err) == codes.NotFound {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("container %s: status: %w", c.Id, err)
		}
		for _, mount := range reply.GetStatus().GetMounts() {
			mounted[mount.GetImage().GetImage()] = true
		}
	}
	return slices.DeleteFunc(images, func(i *cri.Image) bool {
		if used(i, mounted) {
			m.seen[i.Id] = record{m.seen[i.Id].first, time.Now()}
			return true
		}
		return false
	}), nil
}

func used(i *cri.Image, inUse map[string]bool) bool {
	if inUse[i.Id] {
		return true
	}
	return slices.ContainsFunc(slices.Concat(i.RepoTags, i.RepoDigests), func(name string) bool { return inUse[name] })
}

// removeOld removes what was not used for longer than it may be, and returns the rest.
func (m *Manager) removeOld(ctx context.Context, unused []*cri.Image) (rest []*cri.Image, err error) {
	if m.cfg.MaxAge <= 0 {
		return unused, nil
	}
	for _, i := range unused {
		r := m.seen[i.Id]
		last := r.first
		if !r.used.IsZero() {
			last = r.used
		}
		if time.Since(last) < m.cfg.MaxAge {
			rest = append(rest, i)
			continue
		}
		err = errors.Join(err, m.remove(ctx, i, "not used for long"))
	}
	return rest, err
}

// free removes images until so many bytes are free. An image that was pulled a moment ago is likely about to be used.
func (m *Manager) free(ctx context.Context, unused []*cri.Image, want uint64) (freed uint64, err error) {
	for _, i := range unused {
		if freed >= want {
			break
		}
		if time.Since(m.seen[i.Id].first) < m.cfg.MinAge {
			continue
		}
		if e := m.remove(ctx, i, "disk is nearly full"); e != nil {
			err = errors.Join(err, e)
			continue
		}
		freed += i.Size
	}
	return freed, err
}

func (m *Manager) remove(ctx context.Context, i *cri.Image, why string) error {
	m.cfg.Log.Info("removing image", "image", i.Id, "tags", i.RepoTags, "bytes", i.Size, "why", why)
	if _, err := m.cfg.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: i.Id}}); err != nil {
		return fmt.Errorf("remove image %s: %w", i.Id, err)
	}
	return nil
}
