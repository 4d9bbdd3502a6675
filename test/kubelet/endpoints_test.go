package kubelet

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/watch"
	"github.com/orlop/orlop/test/cluster"
)

// served are the endpoints that a proxy would have, by pod.
type served struct {
	mu     sync.Mutex
	slices map[model.Name]*model.Slice
}

func (s *served) SetService(*model.Service)      {}
func (s *served) DeleteService(model.Name)       {}
func (s *served) SetNode(watch.Node)             {}
func (s *served) SetServiceCIDRs([]netip.Prefix) {}
func (s *served) Triggered(time.Time)            {}
func (s *served) Synced(watch.Kind)              {}
func (s *served) SetSlice(slice *model.Slice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slices[slice.Name] = slice
}
func (s *served) DeleteSlice(_, slice model.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.slices, slice)
}

// state describes a pod's endpoint; empty if there is none.
func (s *served) state(pod string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, slice := range s.slices {
		for _, e := range slice.Endpoints {
			if e.Pod == pod {
				return fmt.Sprintf("%s:%d ready %v serving %v terminating %v", e.Addr, slice.Ports[0].Port, e.Ready, e.Serving, e.Terminating)
			}
		}
	}
	return ""
}

const endpointPod = `
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: served}}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "trap 'sleep 3; exit' TERM; while :; do sleep 0.1; done"]
    ports: [{name: web, containerPort: 8080}]
`

// TestPodsAsEndpoints: a proxy on a lone machine has its endpoints from the kubelet of the same node: as pods become ready,
// as they end, static ones too, and when they are gone.
func TestPodsAsEndpoints(t *testing.T) {
	s := begin(t)
	known := follow(s)
	s.apply(strings.ReplaceAll(endpointPod, "NAME", "plain"))
	static := filepath.Join(node.manifests(), s.name+".yaml")
	manifest := strings.NewReplacer("name: NAME", "namespace: "+s.name+", name: static", "IMAGE", image).Replace(endpointPod)
	if err := os.WriteFile(static, []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(static) })
	for _, name := range []string{"plain", "static-" + nodeName} {
		p := s.waitPod(name, "ready", ready)
		s.awaitState(known, name, p.Status.PodIP+":8080 ready true serving true terminating false")
	}
	plain, ip := s.pod("plain").Status.PodIP, s.pod("static-"+nodeName).Status.PodIP
	s.kubectl("delete", "pod", "plain", "--wait=false")
	if os.Getenv("ORLOP_KUBELET") == "real" { // it is asked from time to time, and does not tell that a static pod ends
		s.awaitState(known, "plain", "")
		return
	}
	s.awaitState(known, "plain", plain+":8080 ready false serving true terminating true")
	s.awaitState(known, "plain", "")
	if err := os.Remove(static); err != nil {
		t.Fatal(err)
	}
	s.awaitState(known, "static-"+nodeName, ip+":8080 ready false serving true terminating true")
	s.awaitState(known, "static-"+nodeName, "")
}

func (s *space) awaitState(known *served, pod, want string) {
	s.Helper()
	s.eventually(fmt.Sprintf("%s to be %q", pod, want), func() error {
		if got := known.state(pod); got != want {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
}

// follow follows the node's kubelet for a Service that selects the test's pods.
func follow(s *space) *served {
	s.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", control.Kubeconfig("admin"))
	if err != nil {
		s.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		s.Fatal(err)
	}
	dir := s.TempDir()
	service := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: served, namespace: %s}\n"+
		"spec: {clusterIP: 10.96.200.1, selector: {app: served}, ports: [{port: 80, targetPort: web}]}\n", s.name)
	if err := os.WriteFile(filepath.Join(dir, "service.yaml"), []byte(service), 0o644); err != nil {
		s.Fatal(err)
	}
	d := &watch.Directory{
		Path: dir, Node: watch.Node{Node: model.Node{Name: nodeName}}, Log: slog.New(slog.NewTextHandler(s.Output(), nil)),
		Pods: &watch.Pods{URL: "https://" + cluster.IP + ":10250", Client: client},
	}
	known := &served{slices: map[model.Name]*model.Slice{}}
	ctx := s.Context()
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.Run(ctx, known); err != nil {
			s.Error(err)
		}
	})
	s.Cleanup(running.Wait)
	return known
}
