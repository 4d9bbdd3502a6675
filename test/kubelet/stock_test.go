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

// stock counts what there is between tests, after one pod was here: what is made once and stays is no leak.
func stock() (kernel.Snapshot, error) {
	if err := warmUp(); err != nil {
		return nil, err
	}
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

// warmUp runs a pod and waits until it is gone.
func warmUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	no, grace := false, int64(1)
	pods := control.Client.CoreV1().Pods(metav1.NamespaceDefault)
	p, err := pods.Create(ctx, &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: criclient.Unique("warm")},
		Spec: v1.PodSpec{
			AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &grace,
			Containers: []v1.Container{{
				Name: "main", Image: image, Command: []string{"sleep", "1000"},
				Ports: []v1.ContainerPort{{ContainerPort: 80, HostPort: 18079}}, // the first one makes chains that stay
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	var last error
	waitErr := criclient.Wait(ctx, patience, func() bool {
		p, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
		if last = err; err == nil && !isTrue(p, v1.PodReady) {
			last = fmt.Errorf("phase %s, %+v", p.Status.Phase, p.Status.Conditions)
		}
		return last == nil
	})
	if waitErr != nil {
		return fmt.Errorf("pod %s: %w: %w; the end of the kubelet's log:\n%s", p.Name, waitErr, last, node.logTail())
	}
	err = pods.Delete(ctx, p.Name, metav1.DeleteOptions{})
	return errors.Join(err, criclient.Wait(ctx, 30*time.Second, func() bool {
		_, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}))
}
