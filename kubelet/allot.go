package kubelet

import (
	v1 "k8s.io/api/core/v1"

	"github.com/orlop/orlop/kubelet/admit"
	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/resource"
)

// allotment is what containers hold of CPU and memory, by their names. What a spec asks for is allotted when the pod is let in;
// when it is changed (KEP-1287), once the node has room for it. Until then all that is done for the pod, and told of it, goes by
// what it holds.
type allotment map[string]v1.ResourceRequirements

// allotted are the resources that can be changed.
var allotted = []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory}

// asked is what a spec asks for.
func asked(p *v1.Pod) allotment {
	a := allotment{}
	for c, kind := range pod.Containers(p) {
		if kind != pod.Ephemeral {
			a[c.Name] = c.Resources
		}
	}
	return a
}

// known is what a pod holds by its status, which outlives this process, and where that tells nothing, what its spec asks for.
func known(p *v1.Pod) allotment {
	a := asked(p)
	for name := range a {
		if s := pod.ContainerStatus(&p.Status, name); s != nil && s.AllocatedResources != nil && s.Resources != nil {
			a[name] = v1.ResourceRequirements{Requests: s.AllocatedResources, Limits: s.Resources.Limits}
		}
	}
	return a
}

// differs compares what is asked for with what is held. The limit of CPU is compared as the kernel is told it: a status tells no
// more.
func (a allotment) differs(p *v1.Pod) bool {
	for name, want := range asked(p) {
		held, has := a[name]
		if !has || resource.Quota(want.Limits.Cpu().MilliValue()) != resource.Quota(held.Limits.Cpu().MilliValue()) ||
			want.Limits.Memory().Cmp(*held.Limits.Memory()) != 0 || want.Requests.Cpu().Cmp(*held.Requests.Cpu()) != 0 ||
			want.Requests.Memory().Cmp(*held.Requests.Memory()) != 0 {
			return true
		}
	}
	return false
}

// apply is the pod as if it asked for what it holds.
func (a allotment) apply(p *v1.Pod) *v1.Pod {
	p = p.DeepCopy()
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if held, has := a[list[i].Name]; has {
				replace(&list[i].Resources.Requests, held.Requests)
				replace(&list[i].Resources.Limits, held.Limits)
			}
		}
	}
	return p
}

// replace changes the resources that can be changed.
func replace(list *v1.ResourceList, held v1.ResourceList) {
	for _, name := range allotted {
		if q, has := held[name]; has {
			if *list == nil {
				*list = v1.ResourceList{}
			}
			(*list)[name] = q
		} else {
			delete(*list, name)
		}
	}
}

// allot is the pod with the resources that it holds: those that it asks for, if the node has them.
func (w *worker) allot(p *v1.Pod) *v1.Pod {
	w.mu.Lock()
	if w.held == nil {
		w.held = known(p)
	}
	held, differs := w.held, w.held.differs(p)
	w.mu.Unlock()
	if !differs {
		w.endResize(v1.PodResizePending)
		return p
	}
	if refusal := w.take(p); refusal != nil {
		if w.tellResize(v1.PodResizePending, refusal.Reason, refusal.Message) {
			w.k.cfg.Events.Eventf(p, v1.EventTypeWarning, "Resize"+refusal.Reason, "Pod resize %s: %s", refusal.Reason, refusal.Message)
		}
		return held.apply(p)
	}
	w.k.cfg.Events.Event(p, v1.EventTypeNormal, "ResizeStarted", "Pod resize started")
	w.tellResize(v1.PodResizeInProgress, "", "")
	w.k.pods.pokeWaiting() // it may hold less now
	return p
}

// take takes what the pod asks for of the node, unless it has too little now, or at all.
func (w *worker) take(p *v1.Pod) *admit.Refusal {
	w.k.admitting.Lock()
	defer w.k.admitting.Unlock()
	node := w.k.admission()
	if refusal := admit.Fits(p, node); refusal != nil {
		node.Pods = nil
		if never := admit.Fits(p, node); never != nil {
			return &admit.Refusal{Reason: v1.PodReasonInfeasible, Message: never.Message}
		}
		return &admit.Refusal{Reason: v1.PodReasonDeferred, Message: refusal.Message}
	}
	w.mu.Lock()
	w.held = asked(p)
	w.mu.Unlock()
	return nil
}

// holding is the pod with the resources that it holds.
func (w *worker) holding() *v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := w.held
	if held == nil {
		held = known(w.spec)
	}
	if !held.differs(w.spec) {
		return w.spec
	}
	return held.apply(w.spec)
}

// tellResize notes how far a resize is, for the pod's status, and is true if that is news.
func (w *worker) tellResize(kind v1.PodConditionType, reason, message string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.resizing
	w.resizing = &v1.PodCondition{
		Type: kind, Status: v1.ConditionTrue, Reason: reason, Message: message, ObservedGeneration: w.spec.Generation, LastTransitionTime: now(),
	}
	return old == nil || old.Type != kind || old.Reason != reason || old.ObservedGeneration != w.spec.Generation
}

// endResize forgets that a resize waits, or is under way, and is true if it was so.
func (w *worker) endResize(kind v1.PodConditionType) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.resizing == nil || w.resizing.Type != kind {
		return false
	}
	w.resizing = nil
	return true
}

// waitsForRoom is true for a pod whose resize the node had no room for.
func (w *worker) waitsForRoom() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.resizing != nil && w.resizing.Type == v1.PodResizePending
}

// pokeWaiting has pods look again that wait for room.
func (r *registry) pokeWaiting() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if w.waitsForRoom() {
			w.poke()
		}
	}
}
