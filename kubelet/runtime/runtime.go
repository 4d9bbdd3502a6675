// Package runtime reaches a CRI v1 endpoint and shows what it holds pod by pod. It knows which labels and annotations
// tell the kubelet's pods and containers apart, and nothing else about them.
package runtime

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels on sandboxes and containers, as kubelet sets them: other tools select by them, and so a node may change from
// kubelet to this one and back.
const (
	PodNameLabel       = "io.kubernetes.pod.name"
	PodNamespaceLabel  = "io.kubernetes.pod.namespace"
	PodUIDLabel        = "io.kubernetes.pod.uid"
	ContainerNameLabel = "io.kubernetes.container.name"
)

// Annotations on containers, as kubelet sets them.
const (
	HashAnnotation          = "io.kubernetes.container.hash" // of what a container is replaced for if it changes
	RestartCountAnnotation  = "io.kubernetes.container.restartCount"
	MessagePathAnnotation   = "io.kubernetes.container.terminationMessagePath"
	MessagePolicyAnnotation = "io.kubernetes.container.terminationMessagePolicy"
	GraceAnnotation         = "io.kubernetes.pod.terminationGracePeriod"
	PreStopAnnotation       = "io.kubernetes.container.preStopHandler" // JSON, for pods whose spec is gone
)

// Pod is what the runtime holds of one pod.
type Pod struct {
	UID             types.UID
	Namespace, Name string
	Sandboxes       []*cri.PodSandboxStatus // newest first
	Containers      []*Container            // newest first
}

// Container is a container's status, and the sandbox that it is in, which the status does not tell.
type Container struct {
	*cri.ContainerStatus
	SandboxID string
}

// Running is true while the container's process lives.
func (c *Container) Running() bool { return c.State == cri.ContainerState_CONTAINER_RUNNING }

// Exited is true once it has ended, for ever.
func (c *Container) Exited() bool { return c.State == cri.ContainerState_CONTAINER_EXITED }

// Without is the pod as if a container were not there.
func (p *Pod) Without(id string) *Pod {
	if p == nil || id == "" {
		return p
	}
	less := *p
	less.Containers = slices.DeleteFunc(slices.Clone(p.Containers), func(c *Container) bool { return c.Id == id })
	return &less
}

// Latest is the newest container of a name; nil if there is none.
func (p *Pod) Latest(name string) *Container { return p.before(name, 0) }

// Previous is the one before the newest container of a name; nil if there is none.
func (p *Pod) Previous(name string) *Container { return p.before(name, 1) }

func (p *Pod) before(name string, skip int) *Container {
	for _, c := range p.Containers {
		if c.GetMetadata().GetName() != name {
			continue
		}
		if skip == 0 {
			return c
		}
		skip--
	}
	return nil
}

// Container finds one by its ID; nil if it is not there.
func (p *Pod) Container(id string) *Container {
	for _, c := range p.Containers {
		if c.Id == id {
			return c
		}
	}
	return nil
}

// Sandbox is the newest one; nil if there is none.
func (p *Pod) Sandbox() *cri.PodSandboxStatus {
	if len(p.Sandboxes) == 0 {
		return nil
	}
	return p.Sandboxes[0]
}

// IPs are the addresses of the newest sandbox if it is ready, the main one first. On the host network there are none.
func (p *Pod) IPs() []string {
	s := p.Sandbox()
	if s == nil || s.State != cri.PodSandboxState_SANDBOX_READY || s.GetNetwork().GetIp() == "" {
		return nil
	}
	ips := []string{s.Network.Ip}
	for _, more := range s.Network.AdditionalIps {
		ips = append(ips, more.Ip)
	}
	return ips
}

// Running is true if a sandbox is ready or a container runs.
func (p *Pod) Running() bool {
	return slices.ContainsFunc(p.Sandboxes, func(s *cri.PodSandboxStatus) bool { return s.State == cri.PodSandboxState_SANDBOX_READY }) ||
		slices.ContainsFunc(p.Containers, (*Container).Running)
}

// RestartCount is how often the container's predecessors were restarted, itself included: 0 for the first.
func RestartCount(c *Container) int32 {
	if n, err := strconv.ParseInt(c.GetAnnotations()[RestartCountAnnotation], 10, 32); err == nil {
		return int32(n)
	}
	return int32(c.GetMetadata().GetAttempt())
}

// Reader reads pods. Ended containers change no more, so their status is asked for once.
type Reader struct {
	client *Client

	mu    sync.Mutex
	ended map[string]*Container // by container ID
}

// NewReader reads through client.
func NewReader(client *Client) *Reader {
	return &Reader{client: client, ended: map[string]*Container{}}
}

// Pod reads one pod. A pod that the runtime does not know is empty.
func (r *Reader) Pod(ctx context.Context, uid types.UID) (*Pod, error) {
	labels := map[string]string{PodUIDLabel: string(uid)}
	sandboxes, err := r.client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	containers, err := r.client.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: labels}})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	p := &Pod{UID: uid}
	for _, s := range sandboxes.Items {
		if err := r.addSandbox(ctx, p, s.Id); err != nil {
			return nil, err
		}
	}
	for _, c := range containers.Containers {
		if err := r.addContainer(ctx, p, c); err != nil {
			return nil, err
		}
	}
	p.sort()
	return p, nil
}

func (r *Reader) addSandbox(ctx context.Context, p *Pod, id string) error {
	reply, err := r.client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if status.Code(err) == codes.NotFound {
		return nil // removed in between
	}
	if err != nil {
		return fmt.Errorf("sandbox %s: status: %w", id, err)
	}
	p.Sandboxes = append(p.Sandboxes, reply.Status)
	p.Namespace, p.Name = reply.Status.GetMetadata().GetNamespace(), reply.Status.GetMetadata().GetName()
	return nil
}

func (r *Reader) addContainer(ctx context.Context, p *Pod, c *cri.Container) error {
	r.mu.Lock()
	known := r.ended[c.Id]
	r.mu.Unlock()
	if known != nil {
		p.Containers = append(p.Containers, known)
		return nil
	}
	reply, err := r.client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.Id})
	if status.Code(err) == codes.NotFound {
		return nil
	}
	if err != nil {
		return fmt.Errorf("container %s: status: %w", c.Id, err)
	}
	found := &Container{reply.Status, c.PodSandboxId}
	if found.Exited() {
		r.mu.Lock()
		r.ended[c.Id] = found
		r.mu.Unlock()
	}
	p.Containers = append(p.Containers, found)
	return nil
}

func (p *Pod) sort() {
	slices.SortFunc(p.Sandboxes, func(a, b *cri.PodSandboxStatus) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(b.GetMetadata().GetAttempt(), a.GetMetadata().GetAttempt()))
	})
	slices.SortFunc(p.Containers, func(a, b *Container) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(b.GetMetadata().GetAttempt(), a.GetMetadata().GetAttempt()))
	})
}

// Item is a sandbox or container as a list shows it.
type Item struct {
	ID        string
	Name      string // "" for a sandbox
	State     int32  // of cri.ContainerState or cri.PodSandboxState
	CreatedAt int64  // nanoseconds since 1970
}

// Listed is one pod of a list.
type Listed struct {
	Namespace, Name string
	Sandboxes       []Item
	Containers      []Item
}

// List shows all pods that carry a pod's labels: what others made over the same socket is theirs. Statuses of ended
// containers that are gone are forgotten.
func (r *Reader) List(ctx context.Context) (map[types.UID]*Listed, error) {
	sandboxes, err := r.client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	containers, err := r.client.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	pods, present := map[types.UID]*Listed{}, map[string]bool{}
	of := func(labels map[string]string) *Listed {
		uid := types.UID(labels[PodUIDLabel])
		if uid == "" {
			return nil
		}
		if pods[uid] == nil {
			pods[uid] = &Listed{Namespace: labels[PodNamespaceLabel], Name: labels[PodNameLabel]}
		}
		return pods[uid]
	}
	for _, s := range sandboxes.Items {
		if p := of(s.Labels); p != nil {
			p.Sandboxes = append(p.Sandboxes, Item{ID: s.Id, State: int32(s.State), CreatedAt: s.CreatedAt})
		}
	}
	for _, c := range containers.Containers {
		present[c.Id] = true
		if p := of(c.Labels); p != nil {
			p.Containers = append(p.Containers, Item{ID: c.Id, Name: c.GetMetadata().GetName(), State: int32(c.State), CreatedAt: c.CreatedAt})
		}
	}
	r.forget(present)
	return pods, nil
}

func (r *Reader) forget(present map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.ended {
		if !present[id] {
			delete(r.ended, id)
		}
	}
}
