package kubelet

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/kubelet/admit"
	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/status"
)

func (w *worker) isAdmitted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.admitted
}

// admit lets a pod in once. A critical one has room made for it; it waits until that is free.
func (w *worker) admit(ctx context.Context, p *v1.Pod) (*admit.Refusal, error) {
	victims, refusal, err := w.decide(ctx, p)
	if err != nil || refusal != nil {
		return refusal, err
	}
	for _, victim := range victims {
		w.k.preempt(ctx, victim)
	}
	return nil, ctx.Err()
}

// decide lets a pod in or refuses it. One that ran before this process did is in: it holds what it was given.
func (w *worker) decide(ctx context.Context, p *v1.Pod) ([]*v1.Pod, *admit.Refusal, error) {
	w.k.admitting.Lock()
	defer w.k.admitting.Unlock()
	var victims []*v1.Pod
	if s, known := w.k.status.Get(w.uid); p.Status.StartTime == nil && (!known || s.StartTime == nil) {
		node := w.k.admission()
		if victims = admit.Preempt(p, node); len(victims) == 0 {
			if refusal, err := w.k.check(ctx, p, node); err != nil || refusal != nil {
				return nil, refusal, err
			}
		}
	}
	w.mu.Lock()
	w.admitted = true
	w.mu.Unlock()
	return victims, nil, nil
}

// check asks whether the pod may run. The scheduler may know labels of the node that have not come here yet.
func (k *Kubelet) check(ctx context.Context, p *v1.Pod, node admit.Node) (*admit.Refusal, error) {
	refusal := admit.Check(p, node)
	if refusal == nil || refusal.Reason != admit.ReasonAffinity || k.cfg.Client == nil {
		return refusal, nil
	}
	newest, err := k.cfg.Client.Nodes.All().Get(ctx, k.cfg.Node, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	node.Object = newest
	return admit.Check(p, node), nil
}

// preempt ends a pod for the sake of a critical one, and waits until what it held is free, or should be: the critical one is
// not held up by a container that can't be stopped.
func (k *Kubelet) preempt(ctx context.Context, victim *v1.Pod) {
	k.cfg.Events.Event(victim, v1.EventTypeWarning, preempting, preemptMessage)
	seconds := pod.GracePeriodSeconds(victim)
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+freeTime)
	defer cancel()
	err := k.Terminate(ctx, victim, status.Final{Reason: preempting, Message: preemptMessage, Condition: &v1.PodCondition{
		Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet,
		Message:            "Pod was preempted by Kubelet to accommodate a critical pod.",
		ObservedGeneration: victim.Generation, LastTransitionTime: now(),
	}}, seconds)
	if err != nil {
		k.log.Warn("a pod does not make room for a critical one", "pod", pod.Ref(victim), "err", err)
	}
}

// freeTime is what the end of a pod takes beyond its grace.
const freeTime = 10 * time.Second

// What is told of a pod that made room; kubelet says the same.
const (
	preempting     = "Preempting"
	preemptMessage = "Preempted in order to admit critical pod"
)

func (k *Kubelet) admission() admit.Node {
	state := k.cfg.NodeState()
	return admit.Node{
		Object: state.Object, Allocatable: state.Allocatable, Pods: k.pods.active(), Sysctls: k.cfg.Sysctls,
		Pressure: state.Pressure, ShuttingDown: state.ShuttingDown,
	}
}
