package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop/orlop/test/criclient"
	"github.com/orlop/orlop/test/kernel"
)

// linksDir is where kubelets put links to containers' logs, whatever they are told.
const linksDir = "/var/log/containers"

// everything is what of this run is on the machine, for before its start and after its end.
func everything(dir string) (kernel.Snapshot, error) {
	id := strings.NewReplacer("/", "?", "-", "?").Replace(dir) // the runtime's cgroup and the kubelet's write it differently
	return kernel.Take(kernel.Scope{Dirs: []string{dir}, Cgroups: []string{"/orlop_test" + id + "*"}, Links: []string{linksDir}})
}

// stock counts what there is between tests.
func stock() (kernel.Snapshot, error) {
	// Kubelets make them once.
	for _, dir := range []string{"publish", "staging"} {
		if err := os.MkdirAll(filepath.Join(node.dir, "root/plugins/kubernetes.io/csi/volumeDevices", dir), 0o755); err != nil {
			return nil, err
		}
	}
	scope := runtime.Scope()
	scope.Dirs = append(scope.Dirs, node.dir)
	scope.Cgroups = append(scope.Cgroups, node.cgroup)
	scope.Files = []string{filepath.Join(node.dir, "root"), filepath.Join(node.dir, "logs"), node.manifests()}
	scope.Links = []string{linksDir}
	return kernel.Take(scope)
}

// warmUp runs a pod of each class that has a cgroup of its own, calls during while they run, and waits until they are gone.
func warmUp(during func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var pods []*v1.Pod
	for _, cpu := range []string{"", "1m"} {
		p, err := control.Client.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, warm(cpu), metav1.CreateOptions{})
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	errs := []error{eachWarm(ctx, pods, waitWarm), during(ctx)}
	return errors.Join(append(errs, eachWarm(ctx, pods, removeWarm))...)
}

// nothing is done while pods run.
func nothing(context.Context) error { return nil }

// warm is a pod that asks for some processor time, if for anything.
func warm(cpu string) *v1.Pod {
	no, grace := false, int64(1)
	c := v1.Container{Name: "main", Image: image, Command: []string{"sleep", "1000"}}
	if cpu != "" {
		c.Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}
	} else {
		c.Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: 18079}} // the first one makes chains that stay
	}
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: criclient.Unique("warm")},
		Spec:       v1.PodSpec{AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &grace, Containers: []v1.Container{c}},
	}
}

func eachWarm(ctx context.Context, pods []*v1.Pod, do func(context.Context, string) error) error {
	var errs []error
	for _, p := range pods {
		errs = append(errs, do(ctx, p.Name))
	}
	return errors.Join(errs...)
}

func waitWarm(ctx context.Context, name string) error {
	var last error
	err := criclient.Wait(ctx, patience, func() bool {
		p, err := control.Client.CoreV1().Pods(metav1.NamespaceDefault).Get(ctx, name, metav1.GetOptions{})
		if last = err; err == nil && !isTrue(p, v1.PodReady) {
			last = fmt.Errorf("phase %s, %+v", p.Status.Phase, p.Status.Conditions)
		}
		return last == nil
	})
	if err != nil {
		return fmt.Errorf("pod %s: %w: %w; the end of the kubelet's log:\n%s", name, err, last, node.logTail())
	}
	return nil
}

func removeWarm(ctx context.Context, name string) error {
	pods := control.Client.CoreV1().Pods(metav1.NamespaceDefault)
	err := pods.Delete(ctx, name, metav1.DeleteOptions{})
	return errors.Join(err, criclient.Wait(ctx, 30*time.Second, func() bool {
		_, err := pods.Get(ctx, name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}))
}
