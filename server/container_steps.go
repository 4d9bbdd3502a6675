package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/label"
	"github.com/orlop/orlop/server/store"
	"github.com/orlop/orlop/storage"
)

// build is a container in the making: what its steps hand on to each other. Undoing needs only the record.
type build struct {
	containerPlan
	labels label.Pair // of its process and of its root filesystem, which may differ from the pod's
	rootfs string
	spec   *spec.Output
	joins  string // whose PID namespace, see namespacesFor
}

// containerSteps is the main path of a container. Forwards it makes one; backwards it serves failure, Remove and
// restart.
func (s *Server) containerSteps(want containerPlan) []step[*container] {
	b := &build{containerPlan: want}
	return []step[*container]{
		{"record", s.recordContainer, s.forgetContainer}, // on disk before anything exists in the kernel
		{"rootfs", s.makeRootfs(b), s.deleteRootfs},
		{"spec", s.describe(b), s.freeVolumes},
		{"monitor", s.createInMonitor(b), s.deleteInMonitor},
		{"created", s.setCreated, nil},
	}
}

// recordContainer refuses a pod that is being stopped: the stop has taken its list of containers by then.
func (s *Server) recordContainer(_ context.Context, c *container) error {
	if err := c.pod.ready(); err != nil {
		return err
	}
	return c.write(func(*store.Container) {})
}

func (p *pod) ready() error {
	if state := p.state(); state != store.PodReady {
		return fmt.Errorf("%w: pod %s is %s", store.ErrState, p.id, state)
	}
	return nil
}

func (s *Server) forgetContainer(_ context.Context, c *container) error {
	return s.records.DeleteContainer(c.id)
}

func (s *Server) makeRootfs(b *build) func(context.Context, *container) error {
	return func(ctx context.Context, c *container) (err error) {
		if b.labels, err = c.labels(); err != nil {
			return err
		}
		options := storage.RootfsOptions{ID: string(c.id), ImageID: b.image.ID, MountLabel: b.labels.Mount}
		for _, m := range c.pod.want.uids {
			options.UIDs = append(options.UIDs, storage.IDMap(m))
		}
		for _, m := range c.pod.want.gids {
			options.GIDs = append(options.GIDs, storage.IDMap(m))
		}
		b.rootfs, err = s.Storage.CreateRootfs(ctx, options)
		return err
	}
}

func (c *container) labels() (label.Pair, error) {
	pod, security := c.pod.rec.Load(), c.rec.Load().Config.GetLinux().GetSecurityContext()
	return label.Container(label.Pair{Process: pod.ProcessLabel, Mount: pod.MountLabel},
		security.GetSelinuxOptions(), security.GetPrivileged())
}

func (s *Server) deleteRootfs(ctx context.Context, c *container) error {
	return s.Storage.DeleteRootfs(ctx, string(c.id))
}

// describe looks up what the container's spec depends on, and makes the spec.
func (s *Server) describe(b *build) func(context.Context, *container) error {
	return func(ctx context.Context, c *container) error {
		in, err := s.specInput(c, b)
		if err != nil {
			return err
		}
		images := map[int]string{}
		err = s.Lookup.Container(ctx, in, func(ctx context.Context, index int, m *cri.Mount) (string, error) {
			img, err := s.findImage(m.GetImage())
			if err != nil {
				return "", err
			}
			images[index] = img.ID
			shared, err := label.Shared(in.MountLabel) // its mount is that of other pods, too
			if err != nil {
				return "", err
			}
			return s.Storage.MountImage(ctx, img.ID, volumeHolder(c.id, index), shared)
		})
		if err != nil {
			return err
		}
		if b.spec, err = spec.Container(*in); err != nil {
			return err
		}
		c.note(func(rec *store.Container) {
			rec.CgroupsPath, rec.MountImages, rec.Notes = in.CgroupsPath, images, b.spec.Notes
			rec.User = store.User{UID: in.User.UID, GID: in.User.GID, Groups: in.User.AdditionalGIDs}
		})
		return nil
	}
}

func (s *Server) specInput(c *container, b *build) (*spec.Input, error) {
	p, rec := c.pod, c.rec.Load()
	pod := p.rec.Load()
	cgroups, err := s.Cgroups.ContainerPath(pod.CgroupParent, string(c.id))
	if err != nil {
		return nil, err
	}
	in := &spec.Input{
		Host: s.Host, ID: string(c.id), SandboxID: string(p.id), Sandbox: pod.Config, Container: rec.Config,
		Image: b.image.Config, Rootfs: b.rootfs, CgroupsPath: cgroups, Hostname: p.hostname(),
		DefaultCapabilities: s.cfg.Container.Capabilities, DefaultUlimits: s.cfg.Container.Ulimits,
		DefaultEnv: s.cfg.Container.Env, DefaultAppArmor: s.cfg.Container.AppArmorProfile,
		PidsLimit: s.cfg.Container.PidsLimit,
	}
	in.UIDs, in.GIDs = p.want.ociMaps()
	useDefaultSeccomp(in, s.cfg.Container.SeccompProfile)
	p.files().fill(in)
	in.ProcessLabel, in.MountLabel = b.labels.Process, b.labels.Mount
	in.Namespaces, b.joins, err = s.namespacesFor(c)
	return in, err
}

// namespacesFor are the namespaces that a container joins, and the one whose PID namespace it is, as the monitor knows it.
func (s *Server) namespacesFor(c *container) (paths map[rspec.LinuxNamespaceType]string, joins string, err error) {
	paths = c.pod.namespacePaths()
	options := c.rec.Load().Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	pid := 0
	switch options.GetPid() {
	case cri.NamespaceMode_POD:
		pid, joins = int(c.pod.initPid.Load()), string(c.pod.id)
	case cri.NamespaceMode_TARGET:
		target, err := s.findTarget(c.pod, options.GetTargetId())
		if err != nil {
			return nil, "", err
		}
		pid, joins = target.rec.Load().Pid, string(target.id)
	}
	if pid == 0 { // a pod without a shared namespace has nothing to join, which package spec refuses
		return paths, "", nil
	}
	paths[rspec.PIDNamespace] = fmt.Sprintf("/proc/%d/ns/pid", pid)
	return paths, joins, nil
}

// findTarget finds the container whose PID namespace an ephemeral one joins.
func (s *Server) findTarget(p *pod, id string) (*container, error) {
	const field = optionsField + ".target_id"
	target, err := s.containers.find(id)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %s: container %w", store.ErrInvalid, field, err)
	case target.pod != p:
		return nil, invalid(field, id, "use a container of the same pod")
	case target.state() != store.ContainerRunning:
		return nil, fmt.Errorf("%w: %s: container %s is %s and not running", store.ErrState, field, target.id, target.state())
	}
	return target, nil
}

// volumeHolder names the mount of an image for one mount of a container.
func volumeHolder(id store.ContainerID, index int) string { return fmt.Sprintf("%s-%d", id, index) }

func (s *Server) freeVolumes(ctx context.Context, c *container) error {
	var errs []error
	for i, m := range c.rec.Load().Config.GetMounts() {
		if m.GetImage().GetImage() != "" {
			errs = append(errs, s.Storage.UnmountImage(ctx, volumeHolder(c.id, i)))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) createInMonitor(b *build) func(context.Context, *container) error {
	return func(ctx context.Context, c *container) error {
		rec := c.rec.Load()
		if rec.LogPath != "" { // the kubelet has made it; others leave it to us
			if err := os.MkdirAll(filepath.Dir(rec.LogPath), 0o755); err != nil {
				return err
			}
		}
		if err := c.saveSpec(b.spec.Spec); err != nil {
			return err
		}
		created, err := retry(ctx, func() (conmon.Created, error) {
			return s.monitor.Create(ctx, conmon.CreateRequest{
				ID: string(c.id), Spec: b.spec.Spec, SystemdCgroup: s.cfg.SystemdCgroup, LogPath: rec.LogPath, JoinPIDs: b.joins,
				Stdin: rec.Config.GetStdin(),
				// Without stdin it means nothing. Kubernetes' validation lets such pods through.
				StdinOnce: rec.Config.GetStdin() && rec.Config.GetStdinOnce(),
			})
		})
		if err != nil {
			return err
		}
		for part, d := range created.Steps {
			c.time(part, d)
		}
		c.note(func(rec *store.Container) { rec.Pid = created.Pid })
		return nil
	}
}

func (s *Server) deleteInMonitor(ctx context.Context, c *container) error {
	_, err := retry(ctx, func() (any, error) { return nil, s.monitor.Delete(ctx, string(c.id)) })
	return errors.Join(err, removeBelow(filepath.Dir(c.dir), string(c.id)))
}

// saveSpec keeps the spec for the verbose status. It is not worth an fsync: after a crash of the machine the status
// does without.
func (c *container) saveSpec(spec *rspec.Spec) error {
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(c.specPath(), b, 0o600)
}

func (c *container) specPath() string { return filepath.Join(c.dir, "spec.json") }

func (s *Server) setCreated(_ context.Context, c *container) error {
	return c.move(store.ContainerCreated, func(rec *store.Container) { rec.Timings = c.took() })
}
