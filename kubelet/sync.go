package kubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/plan"
	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/resource"
	"github.com/orlop/orlop/kubelet/runtime"
	"github.com/orlop/orlop/kubelet/status"
)

// roundsAtOnce limits how often a pod is acted upon in one turn, so that one that never comes to rest waits in between.
const roundsAtOnce = 20

// sync brings a pod to what its spec wants: it looks, plans and acts until there is nothing left to do.
func (w *worker) sync(ctx context.Context, v view) (again time.Duration, err error) {
	if v.pod, err = w.withMirror(ctx, v.pod); err != nil {
		return 0, err
	}
	if !w.isAdmitted() {
		refusal, err := w.admit(ctx, v.pod)
		if err != nil {
			return 0, err
		}
		if refusal != nil {
			w.k.cfg.Events.Event(v.pod, v1.EventTypeWarning, refusal.Reason, refusal.Message)
			w.end(status.Final{Reason: refusal.Reason, Message: "Pod was rejected: " + refusal.Message}, nil)
			return 0, nil
		}
	}
	v.pod = w.allot(v.pod)
	w.k.cfg.Objects.Register(v.pod)
	for range roundsAtOnce {
		have, err := w.look(ctx)
		if err != nil {
			return 0, err
		}
		left, expired := deadline(v.pod, w.startTime(), time.Now())
		if expired {
			w.k.cfg.Events.Event(v.pod, v1.EventTypeNormal, "DeadlineExceeded", deadlineMessage)
			w.end(status.Final{Reason: "DeadlineExceeded", Message: deadlineMessage}, nil)
			return 0, nil
		}
		p := w.plan(v.pod, have)
		w.noteDelays(v.pod, p.Delayed)
		w.report(ctx, v, have)
		did, err := w.do(ctx, v, have, p)
		if err != nil {
			return 0, errors.Join(err, w.reportNow(ctx, v))
		}
		if p.Done {
			w.complete()
			return 0, nil
		}
		if !did.something {
			if changed, err := w.resize(ctx, v.pod, have); err != nil {
				return 0, err
			} else if changed {
				continue
			}
			return soonest(append(did.waits, left, w.k.cfg.Timing.Sync)), w.prune(ctx, v.pod, have)
		}
	}
	return 0, fmt.Errorf("did not come to rest in %d rounds", roundsAtOnce)
}

const deadlineMessage = "Pod was active on the node longer than the specified deadline"

// deadline is how long the pod may be active yet; 0 without a limit.
func deadline(p *v1.Pod, start *metav1.Time, now time.Time) (left time.Duration, expired bool) {
	if p.Spec.ActiveDeadlineSeconds == nil || start.IsZero() {
		return 0, false
	}
	left = time.Duration(*p.Spec.ActiveDeadlineSeconds)*time.Second - now.Sub(start.Time)
	return left, left <= 0
}

func (w *worker) startTime() *metav1.Time {
	if s, known := w.k.status.Get(w.uid); known {
		return s.StartTime
	}
	return w.pod().Status.StartTime
}

// soonest is the shortest of those that are more than 0.
func soonest(waits []time.Duration) time.Duration {
	least := time.Duration(0)
	for _, d := range waits {
		if d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

func (w *worker) plan(p *v1.Pod, have *runtime.Pod) plan.Plan {
	return plan.Make(plan.Input{
		Pod: p, Have: have,
		Failed: func(id string) (plan.Failure, bool) {
			verdict, failed := w.k.probes.Failed(id)
			return plan.Failure{Message: verdict.Message + ", will be restarted", GraceSeconds: verdict.GraceSeconds}, failed
		},
		Started: func(c *v1.Container, s *runtime.Container) bool { return w.started(p, c, s) },
		BackOff: func(name string, ended time.Time) time.Duration {
			return w.k.crashes.Left(w.uid, name, ended, time.Now())
		},
	})
}

// started asks the probes, by way of a status, whether a running container has started.
func (w *worker) started(p *v1.Pod, c *v1.Container, s *runtime.Container) bool {
	probed := v1.PodStatus{InitContainerStatuses: []v1.ContainerStatus{{
		Name: c.Name, ContainerID: s.Id, State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.NewTime(time.Unix(0, s.StartedAt))}},
	}}}
	w.k.probes.Apply(p, &probed)
	started := probed.InitContainerStatuses[0].Started
	return started != nil && *started
}

// noteDelays makes the reasons of containers that wait between two crashes.
func (w *worker) noteDelays(p *v1.Pod, delayed []plan.Delay) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, reason := range w.reasons {
		if reason.Reason == crashLoop {
			delete(w.reasons, name)
		}
	}
	for _, d := range delayed {
		message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s(%s)",
			w.k.crashes.Delay(w.uid, d.Container), d.Container, pod.FullName(p), p.UID)
		w.reasons[d.Container] = status.Waiting(crashLoop, message)
	}
}

const crashLoop = "CrashLoopBackOff"

// done is what became of a plan.
type done struct {
	something bool            // and so there may be more to do
	waits     []time.Duration // after each of which to look again
}

// do does what a plan says, and tells how the pod is meanwhile if that is anything that takes time.
func (w *worker) do(ctx context.Context, v view, have *runtime.Pod, p plan.Plan) (d done, err error) {
	isFirst := p.NewSandbox && len(have.Containers) == 0 // of which nothing can be told but that it is on its way
	if isFirst || (!p.EndPod && !p.NewSandbox && len(p.Kill) == 0 && len(p.Start) == 0) {
		return w.act(ctx, v.pod, have, p)
	}
	err = w.meanwhile(ctx, v, func() error {
		d, err = w.act(ctx, v.pod, have, p)
		return err
	})
	return d, err
}

func (w *worker) act(ctx context.Context, p *v1.Pod, have *runtime.Pod, do plan.Plan) (d done, err error) {
	for _, delay := range do.Delayed {
		d.waits = append(d.waits, delay.Left)
		c, _ := pod.Container(p, delay.Container)
		w.k.containerEvent(p, c, v1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s(%s)", delay.Container, pod.FullName(p), p.UID))
	}
	if do.EndPod {
		if do.NewSandbox {
			w.k.cfg.Events.Event(p, v1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
		}
		if err := w.killPod(ctx, p, have, nil); err != nil {
			return d, err
		}
		d.something = true
	}
	for _, kill := range do.Kill {
		if err := w.killContainer(ctx, killing{pod: p, container: kill.Container, id: kill.ID, message: kill.Message, grace: failureGrace(p, kill)}); err != nil {
			return d, err
		}
		d.something = true
	}
	if do.NewSandbox {
		d.something = true
		return d, w.newSandbox(ctx, p, do.Attempt)
	}
	if len(do.Start) == 0 {
		return d, w.refresh(ctx, p, do)
	}
	if err := w.prepare(ctx, p); err != nil {
		return d, err
	}
	started, more, err := w.startAll(ctx, p, have.Sandbox(), do.Start)
	return done{d.something || started, append(d.waits, more...)}, err
}

func failureGrace(p *v1.Pod, kill plan.Kill) int64 {
	if kill.GraceSeconds != nil && p.DeletionTimestamp == nil {
		return *kill.GraceSeconds
	}
	return pod.GracePeriodSeconds(p)
}

// newSandbox makes what a pod's containers stand on.
func (w *worker) newSandbox(ctx context.Context, p *v1.Pod, attempt uint32) error {
	if state := w.k.cfg.NodeState(); state.NetworkReady != nil && !p.Spec.HostNetwork {
		w.k.cfg.Events.Eventf(p, v1.EventTypeWarning, "NetworkNotReady", "network is not ready: %v", state.NetworkReady)
		return fmt.Errorf("network is not ready: %w", state.NetworkReady)
	}
	if err := w.prepare(ctx, p); err != nil {
		return err
	}
	if err := w.makeSandbox(ctx, p, attempt); err != nil {
		if ctx.Err() == nil {
			w.k.cfg.Events.Eventf(p, v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
		}
		return fmt.Errorf("make sandbox: %w", err)
	}
	return nil
}

// prepare makes the pod's directory, cgroup and volumes.
func (w *worker) prepare(ctx context.Context, p *v1.Pod) error {
	if err := w.k.cfg.Root.Make(p.UID); err != nil {
		return err
	}
	if err := w.k.cfg.Cgroups.Ensure(p, resource.OfPod(p, w.k.cfg.Spec.Node)); err != nil {
		return err
	}
	if err := w.k.cfg.Volumes.Setup(ctx, p); err != nil {
		if ctx.Err() == nil {
			w.k.cfg.Events.Eventf(p, v1.EventTypeWarning, volumeReason(err), "%v", err)
		}
		return fmt.Errorf("volumes: %w", err)
	}
	return nil
}

// volumeReason is that of the event about volumes that could not be made.
func volumeReason(err error) string {
	var of interface{ Reason() string }
	if errors.As(err, &of) {
		return of.Reason()
	}
	return "FailedMount"
}

// refresh keeps the contents of a running pod's volumes as they are in the objects that they come from.
func (w *worker) refresh(ctx context.Context, p *v1.Pod, do plan.Plan) error {
	if do.EndPod || do.Done {
		return nil
	}
	if err := w.k.cfg.Volumes.Setup(ctx, p); err != nil {
		w.log.Warn("volumes not refreshed", "err", err) // what they have stays
	}
	return nil
}

// report describes the pod as it is now.
func (w *worker) report(ctx context.Context, v view, have *runtime.Pod) v1.PodStatus {
	known := w.apiPod(v.pod)
	s := w.describe(ctx, v, have)
	w.countStart(&s)
	w.k.status.Set(w.uid, known, s)
	w.k.changes.ring()
	if v.stage == syncing {
		w.k.probes.Sync(v.pod, &s)
	}
	return s
}

// reportNow describes the pod as the runtime has it at this moment.
func (w *worker) reportNow(ctx context.Context, v view) error {
	have, err := w.k.reader.Pod(ctx, w.uid)
	if err == nil {
		w.report(ctx, v, have)
	}
	return err
}

func (w *worker) describe(ctx context.Context, v view, have *runtime.Pod) v1.PodStatus {
	old, known := w.k.status.Get(w.uid)
	if !known {
		old = *v.pod.Status.DeepCopy()
	}
	name, err := w.k.name(ctx)
	if err != nil {
		name = "unknown"
	}
	w.mu.Lock()
	reasons, resizing, hooked := maps.Clone(w.reasons), w.resizing, w.hooked
	w.mu.Unlock()
	have = have.Without(hooked)
	return status.Generate(status.Input{
		Pod: v.pod, Have: have, Old: old, RuntimeName: name, HostIPs: w.k.cfg.NodeState().IPs,
		Now: now(), Reasons: reasons, Resize: resizing,
		Message: w.k.cfg.Root.Message, Ready: w.k.probes.Apply, Final: v.final, Ended: v.stage == ended,
	})
}

// now is as precise as the API writes times.
func now() metav1.Time { return metav1.NewTime(time.Now().Truncate(time.Second)) }

// prune removes what of a pod's past is of no use: all but the newest ended container of each name, those that were made and
// never started, as this process was killed in between, and old sandboxes.
func (w *worker) prune(ctx context.Context, p *v1.Pod, have *runtime.Pod) error {
	newer, kept := map[string]bool{}, map[string]bool{}
	for _, c := range have.Containers {
		name := c.GetMetadata().GetName()
		isPast := kept[name] || (newer[name] && c.State == cri.ContainerState_CONTAINER_CREATED)
		newer[name] = true
		if c.Running() || !isPast {
			kept[name] = kept[name] || c.Exited()
			continue
		}
		if _, err := w.k.cfg.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.Id}); err != nil {
			return fmt.Errorf("remove old container: %w", err)
		}
		w.removeLog(c)
	}
	for _, s := range have.Sandboxes[min(1, len(have.Sandboxes)):] {
		used := false
		for _, c := range have.Containers {
			used = used || (c.SandboxID == s.Id && kept[c.GetMetadata().GetName()])
		}
		if used || s.State == cri.PodSandboxState_SANDBOX_READY {
			continue
		}
		if _, err := w.k.cfg.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			return fmt.Errorf("remove old sandbox: %w", err)
		}
	}
	return w.k.cfg.Root.PruneMessages(p.UID, have)
}
