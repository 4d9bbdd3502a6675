package kubelet

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/spec"
)

// makeSandbox runs a new sandbox for the pod.
func (w *worker) makeSandbox(ctx context.Context, p *v1.Pod, attempt uint32) error {
	config, err := w.sandboxConfig(p, attempt)
	if err != nil {
		return err
	}
	handler, err := w.handler(ctx, p)
	if err != nil {
		return err
	}
	if _, err := w.k.cfg.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler}); err != nil {
		return err
	}
	return nil
}

func (w *worker) sandboxConfig(p *v1.Pod, attempt uint32) (*cri.PodSandboxConfig, error) {
	users, err := w.k.cfg.UserIDs.Of(p)
	if err != nil {
		return nil, err
	}
	return w.k.cfg.Spec.Sandbox(spec.Sandbox{Pod: p, Attempt: attempt, CgroupParent: w.k.cfg.Cgroups.Parent(p), UserIDs: users})
}

// handler is the runtime's name for the pod's RuntimeClass (KEP-585).
func (w *worker) handler(ctx context.Context, p *v1.Pod) (string, error) {
	name := p.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	if w.k.cfg.Client == nil { // without an API server there are no classes; the name is the handler's
		return *name, nil
	}
	class, err := w.k.cfg.Client.RuntimeClasses.All().Get(ctx, *name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("spec.runtimeClassName %s: %w", *name, err)
	}
	return class.Handler, nil
}
