package kubelet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/env"
	"github.com/orlop/orlop/kubelet/image"
	"github.com/orlop/orlop/kubelet/lifecycle"
	"github.com/orlop/orlop/kubelet/plan"
	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/spec"
	podstatus "github.com/orlop/orlop/kubelet/status"
)

// Reasons of containers that could not be started, which are kubelet's.
const (
	reasonConfig    = "CreateContainerConfigError"
	reasonCreate    = "CreateContainerError"
	reasonRun       = "RunContainerError"
	reasonPostStart = "PostStartHookError"
)

// waiting is an error that keeps one container from running, and not the others.
type waiting struct {
	state   v1.ContainerStateWaiting
	retryIn time.Duration // 0 for the usual delay
}

func (e *waiting) Error() string { return e.state.Reason + ": " + e.state.Message }

func waitFor(reason string, err error) error {
	return &waiting{state: podstatus.Waiting(reason, status.Convert(err).Message())}
}

// startAll starts containers, one after the other, in their order. One that fails leaves the others their turn.
func (w *worker) startAll(ctx context.Context, p *v1.Pod, sandbox *cri.PodSandboxStatus, list []plan.Start) (any bool, waits []time.Duration, err error) {
	config, err := w.sandboxConfig(p, sandbox.GetMetadata().GetAttempt())
	if err != nil {
		return false, nil, err
	}
	for _, start := range list {
		s := starting{worker: w, Start: start, pod: w.seen(p, sandbox), sandbox: sandbox, config: config}
		err := s.run(ctx)
		var problem *waiting
		switch {
		case err == nil:
			w.unwait(start.Container.Name)
			any = true
		case ctx.Err() != nil:
			return any, nil, ctx.Err()
		case errors.As(err, &problem):
			w.wait(start.Container.Name, problem.state)
			if problem.retryIn == 0 {
				problem.retryIn = lastRetry
			}
			waits = append(waits, problem.retryIn)
		default:
			return any, nil, err
		}
	}
	return any, waits, nil
}

// seen is the pod with the addresses that its sandbox has, for the downward API and the hosts file.
func (w *worker) seen(p *v1.Pod, sandbox *cri.PodSandboxStatus) *v1.Pod {
	p = p.DeepCopy()
	p.Status.HostIPs, p.Status.PodIPs = nil, nil
	for _, ip := range w.k.cfg.NodeState().IPs {
		p.Status.HostIPs = append(p.Status.HostIPs, v1.HostIP{IP: ip.String()})
	}
	for _, ip := range sandboxIPs(p, sandbox) {
		p.Status.PodIPs = append(p.Status.PodIPs, v1.PodIP{IP: ip})
	}
	if len(p.Status.HostIPs) > 0 {
		p.Status.HostIP = p.Status.HostIPs[0].IP
	}
	if len(p.Status.PodIPs) > 0 {
		p.Status.PodIP = p.Status.PodIPs[0].IP
	}
	return p
}

func sandboxIPs(p *v1.Pod, s *cri.PodSandboxStatus) []string {
	var ips []string
	if p.Spec.HostNetwork {
		for _, ip := range p.Status.HostIPs {
			ips = append(ips, ip.IP)
		}
		return ips
	}
	ips = append(ips, s.GetNetwork().GetIp())
	for _, more := range s.GetNetwork().GetAdditionalIps() {
		ips = append(ips, more.Ip)
	}
	return ips
}

// starting is one container on its way.
type starting struct {
	*worker
	plan.Start
	pod     *v1.Pod // with addresses
	sandbox *cri.PodSandboxStatus
	config  *cri.PodSandboxConfig
}

// run takes a container from its image to its postStart hook.
func (s *starting) run(ctx context.Context) error {
	picture, err := s.image(ctx, s.Container.Image, s.Container.ImagePullPolicy)
	if err != nil {
		return err
	}
	id, err := s.create(ctx, picture)
	if err != nil {
		return err
	}
	if s.hook() != nil {
		s.hide(id)
		defer s.hide("")
	}
	if _, err := s.k.cfg.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
		s.event(v1.EventTypeWarning, "Failed", "Error: %s", status.Convert(err).Message())
		s.crashed()
		return waitFor(reasonRun, err)
	}
	s.event(v1.EventTypeNormal, "Started", "Container started")
	s.crashed()
	s.linkLog(id)
	return s.postStart(ctx, id)
}

// crashed counts the start after an end, so that the next one waits if this one ends soon.
func (s *starting) crashed() {
	if !s.Ended.IsZero() {
		s.k.crashes.Failed(s.uid, s.Container.Name, s.Ended, time.Now())
	}
}

func (s *starting) image(ctx context.Context, name string, policy v1.PullPolicy) (*cri.Image, error) {
	found, err := s.k.images.Ensure(ctx, image.Request{
		Pod: s.pod, About: reference(s.pod, s.Container), Name: name, Policy: policy, Sandbox: s.config, Handler: s.sandbox.RuntimeHandler,
	})
	var problem *image.Problem
	if errors.As(err, &problem) {
		return nil, &waiting{podstatus.Waiting(problem.Reason, problem.Message), problem.RetryIn}
	}
	return found, err
}

// create makes the container in the runtime.
func (s *starting) create(ctx context.Context, picture *cri.Image) (id string, err error) {
	config, err := s.containerConfig(ctx, picture)
	if err != nil {
		var problem *waiting
		if !errors.As(err, &problem) {
			err = waitFor(reasonConfig, err)
		}
		s.event(v1.EventTypeWarning, "Failed", "Error: %s", err.(*waiting).state.Message)
		return "", err
	}
	reply, err := s.k.cfg.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: s.sandbox.Id, Config: config, SandboxConfig: s.config})
	if err != nil {
		s.event(v1.EventTypeWarning, "Failed", "Error: %s", status.Convert(err).Message())
		return "", waitFor(reasonCreate, err)
	}
	s.event(v1.EventTypeNormal, "Created", "Container created")
	return reply.ContainerId, nil
}

func (s *starting) containerConfig(ctx context.Context, picture *cri.Image) (*cri.ContainerConfig, error) {
	vars, err := s.environment(ctx)
	if err != nil {
		return nil, err
	}
	mounts, err := s.mounts(ctx, vars)
	if err != nil {
		return nil, err
	}
	devices, err := s.k.cfg.Volumes.Devices(s.pod, s.Container)
	if err != nil {
		return nil, err
	}
	name, err := image.Spec(s.Container.Image, s.sandbox.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	name.Image = picture.Id
	return s.k.cfg.Spec.Container(spec.Container{
		Pod: s.pod, Container: s.Container, Attempt: s.Attempt, Image: name, ImageUser: picture,
		Env: vars, Mounts: mounts, Devices: devices, Target: s.target(ctx), UserIDs: s.config.Linux.SecurityContext.NamespaceOptions.UsernsOptions,
	})
}

func (s *starting) environment(ctx context.Context) ([]*cri.KeyValue, error) {
	services, err := s.k.cfg.Objects.Services(ctx, s.pod.Namespace)
	if err != nil {
		return nil, err
	}
	return env.Make(ctx, env.Input{
		Pod: s.pod, Container: s.Container, Objects: s.k.cfg.Objects, Services: services,
		Allocatable: s.k.cfg.NodeState().Allocatable, File: func(volume, path, key string) (string, bool, error) {
			return s.k.cfg.Root.EnvFile(s.uid, volume, path, key)
		},
	})
}

// mounts are those of volumes, of images, and the pod's own files.
func (s *starting) mounts(ctx context.Context, vars []*cri.KeyValue) ([]*cri.Mount, error) {
	mounts, err := s.k.cfg.Volumes.Mounts(s.pod, s.Container, env.Lookup(vars))
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if m.Image.GetImage() != "" {
			if err := s.imageVolume(ctx, m); err != nil {
				return nil, err
			}
		}
	}
	own, err := s.files()
	if err != nil {
		return nil, err
	}
	return append(mounts, own...), nil
}

// imageVolume pulls the image that a mount shows (KEP-4639).
func (s *starting) imageVolume(ctx context.Context, m *cri.Mount) error {
	name, policy := m.Image.Image, v1.PullIfNotPresent
	for _, v := range s.pod.Spec.Volumes {
		if v.Image != nil && v.Image.Reference == name {
			policy = v.Image.PullPolicy
		}
	}
	picture, err := s.image(ctx, name, policy)
	if err != nil {
		return err
	}
	m.Image = &cri.ImageSpec{Image: picture.Id, UserSpecifiedImage: name, RuntimeHandler: s.sandbox.RuntimeHandler}
	return nil
}

func (s *starting) files() ([]*cri.Mount, error) {
	names, err := spec.Hostname(s.pod, s.k.cfg.Spec.DNS.Domain)
	if err != nil {
		return nil, err
	}
	var ips []string
	for _, ip := range s.pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	return s.k.cfg.Root.Mounts(s.pod, s.Container, spec.Hosts(s.pod, ips, names, nodeHosts(s.pod)))
}

// target is the running container whose processes an ephemeral one shall see.
func (s *starting) target(ctx context.Context) string {
	for _, e := range s.pod.Spec.EphemeralContainers {
		if e.Name != s.Container.Name || e.TargetContainerName == "" {
			continue
		}
		if have, err := s.k.reader.Pod(ctx, s.uid); err == nil {
			if c := have.Latest(e.TargetContainerName); c != nil && c.Running() {
				return c.Id
			}
		}
	}
	return ""
}

func (s *starting) hook() *v1.LifecycleHandler {
	if s.Container.Lifecycle == nil {
		return nil
	}
	return s.Container.Lifecycle.PostStart
}

// hide keeps a container from being told of, "" none: it counts as running once its postStart hook has ended.
func (w *worker) hide(id string) {
	w.mu.Lock()
	w.hooked = id
	w.mu.Unlock()
}

// postStart runs the hook. A container whose hook fails is ended, and by its restart policy started again.
func (s *starting) postStart(ctx context.Context, id string) error {
	if s.hook() == nil {
		return nil
	}
	message, err := s.k.hooks.Run(ctx, lifecycle.Hook{
		Pod: s.pod, Container: s.Container, ContainerID: id, Handler: s.hook(), PodIP: s.pod.Status.PodIP,
	})
	if err == nil {
		return nil
	}
	s.event(v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %s", message)
	kill := killing{pod: s.pod, container: s.Container, id: id, message: "FailedPostStartHook", grace: pod.GracePeriodSeconds(s.pod)}
	if err := s.killContainer(ctx, kill); err != nil {
		return err
	}
	return waitFor(reasonPostStart, fmt.Errorf("PostStart hook failed: %w", err))
}

func (s *starting) event(kind, reason, format string, args ...any) {
	s.k.containerEvent(s.pod, s.Container, kind, reason, fmt.Sprintf(format, args...))
}
