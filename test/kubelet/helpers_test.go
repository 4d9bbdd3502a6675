package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/test/criclient"
)

// patience is how long a test waits for what should take seconds at most.
const patience = 60 * time.Second

// space is a test's own namespace.
type space struct {
	*testing.T
	name string
}

// begin makes a namespace, and removes it with all that is in it when the test ends.
func begin(t *testing.T) *space {
	t.Helper()
	t.Parallel()
	s := &space{t, criclient.Unique("t")}
	ns := &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.name}}
	if _, err := control.Client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	s.eventually("the default service account", func() error {
		_, err := control.Client.CoreV1().ServiceAccounts(s.name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return s
}

func (s *space) end() {
	ctx := context.Background()
	if s.Failed() {
		s.explain(ctx)
	}
	_ = control.Client.CoreV1().Namespaces().Delete(ctx, s.name, metav1.DeleteOptions{})
	err := criclient.Wait(ctx, patience, func() bool {
		_, err := control.Client.CoreV1().Namespaces().Get(ctx, s.name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if err != nil {
		s.explain(ctx)
		s.Errorf("namespace %s does not go: a pod does not end", s.name)
	}
}

// explain logs what the cluster tells of the test's pods.
func (s *space) explain(ctx context.Context) {
	for _, args := range [][]string{{"get", "pods", "-o", "wide"}, {"get", "pods", "-o", "yaml"}, {"get", "events", "--sort-by=.lastTimestamp"}} {
		out, _ := s.command(ctx, args...).CombinedOutput()
		s.Logf("kubectl %s:\n%s", strings.Join(args, " "), out)
	}
}

func (s *space) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, control.Bin.Kubectl, append([]string{"--kubeconfig", control.Kubeconfig("admin"), "-n", s.name}, args...)...)
}

// kubectl runs a command of kubectl and returns what it prints.
func (s *space) kubectl(args ...string) string {
	s.Helper()
	out, err := s.tryKubectl("", args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func (s *space) tryKubectl(stdin string, args ...string) (string, error) {
	cmd := s.command(s.Context(), args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// apply creates or changes objects. IMAGE stands for the tests' image.
func (s *space) apply(manifest string) {
	s.Helper()
	manifest = strings.ReplaceAll(manifest, "IMAGE", image)
	if _, err := s.tryKubectl(manifest, "apply", "-f", "-"); err != nil {
		s.Fatal(err)
	}
}

// eventually asks until there is no error.
func (s *space) eventually(what string, ask func() error) {
	s.Helper()
	s.within(patience, what, ask)
}

func (s *space) within(limit time.Duration, what string, ask func() error) {
	s.Helper()
	var last error
	if err := criclient.Wait(s.Context(), limit, func() bool { last = ask(); return last == nil }); err != nil {
		s.Fatalf("waited %s for %s: %v", limit, what, last)
	}
}

func (s *space) pod(name string) *v1.Pod {
	s.Helper()
	p, err := control.Client.CoreV1().Pods(s.name).Get(s.Context(), name, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return p
}

// pods are those of the namespace that a label selector finds.
func (s *space) pods(selector string) []v1.Pod {
	s.Helper()
	list, err := control.Client.CoreV1().Pods(s.name).List(s.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		s.Fatal(err)
	}
	return list.Items
}

// waitPod waits until a pod is as it should be, and returns it.
func (s *space) waitPod(name, what string, ok func(p *v1.Pod) bool) *v1.Pod {
	s.Helper()
	var p *v1.Pod
	s.eventually("pod "+name+" to be "+what, func() (err error) {
		if p, err = control.Client.CoreV1().Pods(s.name).Get(s.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		if !ok(p) {
			return fmt.Errorf("phase %s", p.Status.Phase)
		}
		return nil
	})
	return p
}

func ready(p *v1.Pod) bool { return isTrue(p, v1.PodReady) }

func isTrue(p *v1.Pod, kind v1.PodConditionType) bool {
	c := condition(p, kind)
	return c != nil && c.Status == v1.ConditionTrue
}

func condition(p *v1.Pod, kind v1.PodConditionType) *v1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == kind {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func phase(want v1.PodPhase) func(p *v1.Pod) bool {
	return func(p *v1.Pod) bool { return p.Status.Phase == want }
}

func gone(s *space, name string) func() error {
	return func() error {
		_, err := control.Client.CoreV1().Pods(s.name).Get(s.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there (%v)", err)
	}
}

// event waits for an event about a pod.
func (s *space) event(pod, reason string) v1.Event {
	s.Helper()
	var found v1.Event
	s.eventually("event "+reason+" about "+pod, func() error {
		list, err := control.Client.CoreV1().Events(s.name).List(s.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == pod && e.Reason == reason {
				found = e
				return nil
			}
		}
		return fmt.Errorf("not among %d events", len(list.Items))
	})
	return found
}
