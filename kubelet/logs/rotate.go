package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Container is a running container whose log may grow.
type Container struct {
	ID, Path string
}

// RotatorConfig says when logs are rotated, by containerLogMaxSize, containerLogMaxFiles, containerLogMaxWorkers and
// containerLogMonitorInterval of KubeletConfiguration.
type RotatorConfig struct {
	MaxBytes int64 // of the current file; negative: nothing is rotated
	MaxFiles int   // of one container, the current one among them; at least 2
	Workers  int
	Period   time.Duration

	Running func(ctx context.Context) ([]Container, error)
	Reopen  func(ctx context.Context, containerID string) error // CRI's ReopenContainerLog
	Log     *slog.Logger
}

// Rotator keeps the logs of running containers small.
type Rotator struct{ cfg RotatorConfig }

// NewRotator fails for limits under which no log could be kept.
func NewRotator(cfg RotatorConfig) (*Rotator, error) {
	if cfg.MaxFiles < 2 {
		return nil, fmt.Errorf("containerLogMaxFiles %d: the current file and a rotated one make 2; set at least 2", cfg.MaxFiles)
	}
	if cfg.Period <= 0 {
		return nil, fmt.Errorf("containerLogMonitorInterval %s: set a time above zero, such as 10s", cfg.Period)
	}
	cfg.Workers = max(cfg.Workers, 1)
	return &Rotator{cfg}, nil
}

// Run rotates logs until ctx ends.
func (r *Rotator) Run(ctx context.Context) {
	if r.cfg.MaxBytes < 0 {
		return
	}
	ticker := time.NewTicker(r.cfg.Period)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			r.Check(ctx)
		}
	}
}

// Check looks at all logs once. What could not be rotated is tried at the next check.
func (r *Rotator) Check(ctx context.Context) {
	containers, err := r.cfg.Running(ctx)
	if err != nil {
		r.cfg.Log.Warn("logs are not rotated: containers are not known", "err", err)
		return
	}
	var workers errgroup.Group
	workers.SetLimit(r.cfg.Workers)
	for _, c := range containers {
		workers.Go(func() error {
			if err := r.check(ctx, c); err != nil && ctx.Err() == nil {
				r.cfg.Log.Warn("log is not rotated", "container", c.ID, "path", c.Path, "err", err)
			}
			return nil
		})
	}
	workers.Wait()
}

func (r *Rotator) check(ctx context.Context, c Container) error {
	info, err := os.Stat(c.Path)
	switch {
	case errors.Is(err, os.ErrNotExist): // removed by somebody, or renamed by a rotation that was cut short
		return r.cfg.Reopen(ctx, c.ID)
	case err != nil:
		return err
	case info.Size() < r.cfg.MaxBytes:
		return nil
	}
	return r.rotate(ctx, c)
}

func (r *Rotator) rotate(ctx context.Context, c Container) error {
	old, err := r.clean(c.Path)
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := compress(ctx, f); err != nil {
			return fmt.Errorf("compress %s: %w", f, err)
		}
	}
	return r.swap(ctx, c)
}

// clean removes what a cut-short compression left, and so many of the oldest files that there will be MaxFiles with
// the two that a rotation makes of the current one. It returns the others.
func (r *Rotator) clean(path string) ([]string, error) {
	all, err := Files(path)
	if err != nil {
		return nil, err
	}
	keep, err := rotated(path)
	if err != nil {
		return nil, err
	}
	if excess := len(keep) - (r.cfg.MaxFiles - 2); excess > 0 {
		keep = keep[excess:]
	}
	for _, f := range all {
		ours := stampOf(path, strings.TrimSuffix(f, tempSuffix)) != ""
		if !ours || slices.Contains(keep, f) {
			continue
		}
		if err := os.Remove(f); err != nil {
			return nil, err
		}
	}
	return keep, nil
}

// swap renames the current file and lets the runtime open another one. If it does not, the name is given back, unless
// there is another file by now: then the runtime did, and only its answer was lost.
func (r *Rotator) swap(ctx context.Context, c Container) error {
	name, err := moveAside(c.Path, time.Now())
	if err != nil {
		return err
	}
	if err := r.cfg.Reopen(ctx, c.ID); err != nil {
		undo := rename(name, c.Path)
		if errors.Is(undo, os.ErrExist) {
			undo = nil
		}
		return errors.Join(fmt.Errorf("reopen: %w", err), undo)
	}
	return nil
}

// moveAside renames a log by the time, in UTC so that names are in order when clocks are set back in autumn. A name
// that is taken, by a rotation in the same second, is never overwritten.
func moveAside(path string, now time.Time) (string, error) {
	for {
		name := path + "." + now.UTC().Format(stampFormat)
		err := os.ErrExist
		if _, statErr := os.Stat(name + gzipSuffix); errors.Is(statErr, os.ErrNotExist) {
			err = rename(path, name)
		}
		if !errors.Is(err, os.ErrExist) {
			return name, err
		}
		now = now.Add(time.Second)
	}
}

func rename(from, to string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// compress replaces a rotated file by its compressed form, with the same owner and mode. Cut short anywhere, it leaves
// the file or its whole copy.
func compress(ctx context.Context, path string) error {
	if strings.HasSuffix(path, gzipSuffix) {
		return nil
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	temp := path + tempSuffix
	if err := writeCompressed(ctx, temp, in); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	if err := os.Rename(temp, path+gzipSuffix); err != nil {
		return err
	}
	return os.Remove(path)
}

func writeCompressed(ctx context.Context, path string, in *os.File) error {
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, untilDone{ctx, in})
	err = errors.Join(err, z.Close(), keepOwner(out, info))
	return errors.Join(err, out.Close())
}

func keepOwner(f *os.File, like os.FileInfo) error {
	owner, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

// untilDone fails when its context ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}
