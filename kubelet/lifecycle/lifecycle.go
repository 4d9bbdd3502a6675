// Package lifecycle runs the hooks of containers: what postStart and preStop ask for.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/probe/check"
)

// FallbackReason is that of the event about a hook that was asked over HTTPS and answered over HTTP.
const FallbackReason = "LifecycleHTTPFallback"

// Config is what a Runner needs.
type Config struct {
	Exec  check.ExecFunc
	Event func(pod *v1.Pod, eventType, reason, message string)
	Log   *slog.Logger
}

// Runner runs hooks.
type Runner struct {
	cfg    Config
	client *http.Client
}

// New makes a runner.
func New(cfg Config) *Runner {
	return &Runner{cfg: cfg, client: check.Client(0)} // a hook's time is limited by its caller alone
}

// Hook is one hook of one container.
type Hook struct {
	Pod         *v1.Pod
	Container   *v1.Container
	ContainerID string
	Handler     *v1.LifecycleHandler
	PodIP       string
}

// errNoHandler: a tcpSocket handler is kept in the API for old clients only and does nothing.
var errNoHandler = errors.New("hook has no handler; set exec, httpGet or sleep")

// Run runs a hook to its end, or until ctx ends. message is for an event about a hook that did not succeed.
func (r *Runner) Run(ctx context.Context, h Hook) (message string, err error) {
	what := ""
	switch {
	case h.Handler.Exec != nil:
		return r.exec(ctx, h)
	case h.Handler.HTTPGet != nil:
		what, err = fmt.Sprintf("HTTP lifecycle hook (%s)", h.Handler.HTTPGet.Path), r.http(ctx, h)
	case h.Handler.Sleep != nil:
		what, err = fmt.Sprintf("Sleep lifecycle hook (%d)", h.Handler.Sleep.Seconds), sleep(ctx, h.Handler.Sleep.Seconds)
	default:
		return "Cannot run handler: " + errNoHandler.Error(), errNoHandler
	}
	if err == nil {
		return "", nil
	}
	return failed(what, h) + " - error: " + err.Error(), err
}

func failed(what string, h Hook) string {
	return fmt.Sprintf("%s for Container %q in Pod \"%s_%s(%s)\" failed", what, h.Container.Name, h.Pod.Name, h.Pod.Namespace, h.Pod.UID)
}

func (r *Runner) exec(ctx context.Context, h Hook) (message string, err error) {
	cmd := h.Handler.Exec.Command
	out, code, err := r.cfg.Exec(ctx, h.ContainerID, cmd, 0)
	if err == nil && code != 0 {
		err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(cmd, " "), code, out)
	}
	if err == nil {
		return "", nil
	}
	return fmt.Sprintf("%s - error: %v, message: %q", failed(fmt.Sprintf("Exec lifecycle hook (%v)", cmd), h), err, out), err
}

// sleep is KEP-3960.
func sleep(ctx context.Context, seconds int64) error {
	timer := time.NewTimer(time.Duration(seconds) * time.Second)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errors.New("container terminated before sleep hook finished")
	}
}

// http succeeds with any answer, whatever its status. A server that answers an HTTPS request without TLS is asked once
// more over HTTP, as kubelet does for the sake of old manifests: it sent all hooks over HTTP before 1.25.
func (r *Runner) http(ctx context.Context, h Hook) error {
	target := check.Target{Container: h.Container, ContainerID: h.ContainerID, PodIP: h.PodIP}
	if h.Handler.HTTPGet.Host == "" && h.PodIP == "" {
		return fmt.Errorf("pod %s has no address yet", pod.Ref(h.Pod))
	}
	req, err := check.Request(ctx, h.Handler.HTTPGet, target, "lifecycle")
	if err != nil {
		return err
	}
	err = r.send(req)
	if !errors.Is(err, http.ErrSchemeMismatch) {
		return err
	}
	r.cfg.Log.Debug("hook over HTTPS was answered over HTTP", "pod", pod.Ref(h.Pod), "container", h.Container.Name)
	req = req.Clone(ctx)
	req.URL.Scheme = "http"
	req.Header.Del("Authorization") // it was meant to be encrypted
	if err := r.send(req); err != nil {
		return err
	}
	r.cfg.Event(h.Pod, v1.EventTypeWarning, FallbackReason,
		fmt.Sprintf("request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", req.URL.Host))
	return nil
}

func (r *Runner) send(req *http.Request) error {
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	const enoughBytes = 10 << 10 // so that the server is not cut off in the middle of a usual answer
	io.Copy(io.Discard, io.LimitReader(resp.Body, enoughBytes))
	return nil
}
