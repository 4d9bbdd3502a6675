// Package image gets the images of containers: by pull policy, with a pod's pull secrets, and with patience for
// registries that fail.
package image

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/orlop/orlop/kubelet/backoff"
	"github.com/orlop/orlop/kubelet/image/login"
)

// Problem is why a container waits for its image, in the words of its status.
type Problem struct {
	Reason, Message string
	RetryIn         time.Duration // 0 if trying again is of no use before something changes
}

func (p *Problem) Error() string { return p.Reason + ": " + p.Message }

// Reasons of problems, which are kubelet's: people and tools look for them.
const (
	reasonInvalid = "InvalidImageName"
	reasonInspect = "ImageInspectError"
	reasonNever   = "ErrImageNeverPull"
	reasonPull    = "ErrImagePull"
	reasonBackOff = "ImagePullBackOff"
)

// Delays between pulls of one image for one pod, as kubelet's.
const (
	firstDelay = 10 * time.Second
	lastDelay  = 5 * time.Minute
)

// showFailure is for how long a pod's status has a failed pull's own reason before it says ImagePullBackOff; kubelet looks
// at a pod again only some 10 s after a failure. Who watches would else miss it.
const showFailure = 5 * time.Second

// Config is what a Puller works with.
type Config struct {
	Images  cri.ImageServiceClient
	Secrets Secrets
	Node    []Source // of logins that all pods of the node have
	Events  record.EventRecorder
	AtOnce  int // pulls at a time; 0 for no limit
}

// Source has logins, some of which may be for an image. Those that it has are of use even if it fails.
type Source func(ctx context.Context, image string) ([]login.Keyring, error)

// Puller pulls images. Its methods may run side by side.
type Puller struct {
	cfg    Config
	delays *backoff.Delays
	slots  chan struct{} // nil for no limit

	mu       sync.Mutex
	failures map[types.UID]map[string]*Problem // the last ones, by image
}

// New makes a Puller.
func New(cfg Config) *Puller {
	p := &Puller{cfg: cfg, delays: backoff.New(firstDelay, lastDelay), failures: map[types.UID]map[string]*Problem{}}
	if cfg.AtOnce > 0 {
		p.slots = make(chan struct{}, cfg.AtOnce)
	}
	return p
}

// Request is an image that a pod needs.
type Request struct {
	Pod     *v1.Pod
	About   runtime.Object // whom events are about: the pod, or a container of it
	Name    string         // as the pod's spec has it
	Policy  v1.PullPolicy
	Sandbox *cri.PodSandboxConfig
	Handler string // the runtime handler, which may have images of its own
}

// Ensure returns the image, pulled if its policy asks for it. An error is a [*Problem], unless ctx has ended.
func (p *Puller) Ensure(ctx context.Context, r Request) (*cri.Image, error) {
	spec, err := Spec(r.Name, r.Handler)
	if err != nil {
		p.event(r, v1.EventTypeWarning, "InspectFailed", "Failed to apply default image tag %q: %v", r.Name, err)
		return nil, &Problem{Reason: reasonInvalid, Message: fmt.Sprintf("Failed to apply default image tag %q: %v", r.Name, err)}
	}
	present, err := p.inspect(ctx, r, spec)
	if err != nil {
		return nil, err
	}
	if present != nil && r.Policy != v1.PullAlways {
		p.event(r, v1.EventTypeNormal, "Pulled", "Container image %q already present on machine", r.Name)
		return present, nil
	}
	if r.Policy == v1.PullNever {
		p.event(r, v1.EventTypeWarning, "ErrImageNeverPull", "Container image %q is not present with pull policy of Never", r.Name)
		return nil, &Problem{Reason: reasonNever, Message: fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Name)}
	}
	return p.pull(ctx, r, spec)
}

// Spec names an image as CRI does: one without a tag or digest has the tag latest.
func Spec(name, handler string) (*cri.ImageSpec, error) {
	if name == "" || strings.TrimSpace(name) != name || strings.ContainsAny(name, " \t\n") {
		return nil, fmt.Errorf("couldn't parse image name %q: invalid reference format", name)
	}
	full := name
	last := name[strings.LastIndex(name, "/")+1:]
	if !strings.ContainsAny(last, ":@") {
		full += ":latest"
	}
	return &cri.ImageSpec{Image: full, UserSpecifiedImage: name, RuntimeHandler: handler}, nil
}

func (p *Puller) inspect(ctx context.Context, r Request, spec *cri.ImageSpec) (*cri.Image, error) {
	reply, err := p.cfg.Images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	switch {
	case status.Code(err) == codes.InvalidArgument:
		return nil, &Problem{Reason: reasonInvalid, Message: status.Convert(err).Message()}
	case err != nil:
		p.event(r, v1.EventTypeWarning, "InspectFailed", "Failed to inspect image %q: %v", r.Name, err)
		return nil, &Problem{Reason: reasonInspect, Message: fmt.Sprintf("Failed to inspect image %q: %v", r.Name, err), RetryIn: firstDelay}
	}
	return reply.Image, nil
}

func (p *Puller) pull(ctx context.Context, r Request, spec *cri.ImageSpec) (*cri.Image, error) {
	uid, now := r.Pod.UID, time.Now()
	if left := p.delays.Left(uid, spec.Image, p.delays.LastFailure(uid, spec.Image), now); left > 0 {
		return nil, p.waits(r, spec.Image, now, left)
	}
	auths, err := p.credentials(ctx, r.Pod, spec.Image)
	if err != nil {
		p.event(r, v1.EventTypeWarning, "FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets: %v; attempting to pull the image may not succeed.", err)
	}
	p.event(r, v1.EventTypeNormal, "Pulling", "Pulling image %q", r.Name)
	asked := time.Now()
	release, err := p.turn(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	err = p.tryAll(ctx, spec, r.Sandbox, auths)
	release()
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failed := time.Now()
		delay := p.delays.Failed(uid, spec.Image, failed, failed)
		reason, message := pullError(r.Name, status.Convert(err).Message())
		p.event(r, v1.EventTypeWarning, "Failed", "Failed to pull image %q: %s", r.Name, message)
		p.event(r, v1.EventTypeWarning, "Failed", "Error: %s", reason)
		problem := &Problem{Reason: reason, Message: message, RetryIn: min(delay, showFailure)}
		p.note(uid, spec.Image, problem)
		return nil, problem
	}
	p.delays.Succeeded(uid, spec.Image)
	p.note(uid, spec.Image, nil)
	image, err := p.inspect(ctx, r, spec)
	if err == nil && image == nil {
		return nil, &Problem{Reason: reasonInspect, Message: fmt.Sprintf("image %q was pulled, and is not there", r.Name), RetryIn: firstDelay}
	}
	p.event(r, v1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %s (%s including waiting). Image size: %d bytes.",
		r.Name, round(time.Since(began)), round(time.Since(asked)), image.GetSize())
	return image, err
}

// pullError knows the two errors that runtimes mark by a word, see k8s.io/cri-api/pkg/errors.
func pullError(image, text string) (reason, message string) {
	switch {
	case strings.Contains(text, crierrors.ErrRegistryUnavailable.Error()):
		return crierrors.ErrRegistryUnavailable.Error(), fmt.Sprintf("image pull failed for %s because the registry is unavailable: %s", image, text)
	case strings.Contains(text, crierrors.ErrSignatureValidationFailed.Error()):
		return crierrors.ErrSignatureValidationFailed.Error(), fmt.Sprintf("image pull failed for %s because the signature validation failed: %s", image, text)
	}
	return reasonPull, text
}

// waits is the problem of an image that may not be pulled again yet, for as long as left.
func (p *Puller) waits(r Request, image string, now time.Time, left time.Duration) *Problem {
	p.mu.Lock()
	failure := p.failures[r.Pod.UID][image]
	p.mu.Unlock()
	if show := showFailure - now.Sub(p.delays.LastFailure(r.Pod.UID, image)); failure != nil && show > 0 {
		return &Problem{Reason: failure.Reason, Message: failure.Message, RetryIn: min(left, show)}
	}
	message := fmt.Sprintf("Back-off pulling image %q", r.Name)
	p.event(r, v1.EventTypeNormal, "BackOff", "%s", message)
	if failure != nil {
		message += ": " + failure.Error()
	}
	return &Problem{Reason: reasonBackOff, Message: message, RetryIn: left}
}

// note keeps the problem of an image's last pull; nil if there was none.
func (p *Puller) note(uid types.UID, image string, problem *Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if problem == nil {
		delete(p.failures[uid], image)
		return
	}
	if p.failures[uid] == nil {
		p.failures[uid] = map[string]*Problem{}
	}
	p.failures[uid][image] = problem
}

// Forget drops what is remembered of a pod.
func (p *Puller) Forget(uid types.UID) {
	p.delays.Forget(uid)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.failures, uid)
}

// turn waits until a pull may begin.
func (p *Puller) turn(ctx context.Context) (release func(), err error) {
	if p.slots == nil {
		return func() {}, nil
	}
	select {
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// tryAll pulls with each of the credentials until one is taken; without any, as nobody.
func (p *Puller) tryAll(ctx context.Context, spec *cri.ImageSpec, sandbox *cri.PodSandboxConfig, auths []*cri.AuthConfig) error {
	if len(auths) == 0 {
		auths = []*cri.AuthConfig{nil}
	}
	var err error
	for _, auth := range auths {
		if _, err = p.cfg.Images.PullImage(ctx, &cri.PullImageRequest{Image: spec, Auth: auth, SandboxConfig: sandbox}); err == nil {
			return nil
		}
	}
	return err
}

func (p *Puller) event(r Request, kind, reason, format string, args ...any) {
	p.cfg.Events.Eventf(r.About, kind, reason, format, args...)
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
