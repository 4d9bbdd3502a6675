package server

import (
	"context"
	"errors"
	"fmt"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/server/store"
)

// RunPodSandbox may be repeated: the kubelet does so after a timeout, and gets the same pod.
func (s *Server) RunPodSandbox(ctx context.Context, req *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	rec, want, err := s.parsePod(req) // all validation; req is not read below this line
	if err != nil {
		return nil, err
	}
	made, err := s.joinPod(ctx, rec, want)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", podTitle(rec), err)
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: string(made.id)}, nil
}

// joinPod makes a pod on the daemon's context. Where the same is being made, it waits for that one; where it has been
// made, it returns it.
func (s *Server) joinPod(ctx context.Context, rec *store.Pod, want podPlan) (*pod, error) {
	fresh := s.newPod(rec, want, newFlight())
	p, first := s.pods.claim(fresh.id, fresh.name, fresh)
	if first {
		s.fly(p.made, func(ctx context.Context) error { return s.makePod(ctx, p) })
	} else if err := p.samePod(rec); err != nil {
		return nil, err
	}
	if err := p.made.wait(ctx, &p.progress); err != nil {
		return nil, err
	}
	if state := p.state(); state != store.PodReady {
		return nil, fmt.Errorf("%w: pod %s of this name and attempt is %s; remove it or use another attempt", store.ErrExists, p.id, state)
	}
	return p, nil
}

// samePod tells whether a request asks for the pod that is there.
func (p *pod) samePod(rec *store.Pod) error {
	have := p.rec.Load()
	if proto.Equal(have.Config, rec.Config) && have.Handler == rec.Handler {
		return nil
	}
	return fmt.Errorf("%w: pod %s has this name and attempt and another config; use another attempt", store.ErrExists, p.id)
}

func (s *Server) makePod(ctx context.Context, p *pod) error {
	err := up(ctx, p, s.podSteps())
	if err == nil {
		s.tellPod(cri.ContainerEventType_CONTAINER_CREATED_EVENT, p)
		s.tellPod(cri.ContainerEventType_CONTAINER_STARTED_EVENT, p)
		return nil
	}
	left := leftOver(err)
	if left == nil {
		s.pods.remove(p.id, p.name, p)
		return err
	}
	s.pods.releaseName(p.name, p) // what is left of it must not keep a new one from being made
	if moveErr := p.move(store.PodRemoving, nil); moveErr != nil {
		left = errors.Join(left, moveErr)
	}
	s.pendPod(p, left)
	return err
}

// podTitle is how people know a pod.
func podTitle(rec *store.Pod) string {
	m := rec.Config.GetMetadata()
	return m.GetNamespace() + "/" + m.GetName()
}

// namespacePaths are the pod's own namespaces, for its containers to join.
func (p *pod) namespacePaths() map[rspec.LinuxNamespaceType]string {
	paths := map[rspec.LinuxNamespaceType]string{}
	if !p.want.hostNetwork {
		paths[rspec.NetworkNamespace] = p.nsDir() + "/net"
		paths[rspec.UTSNamespace] = p.nsDir() + "/uts"
	}
	if !p.want.hostIPC {
		paths[rspec.IPCNamespace] = p.nsDir() + "/ipc"
	}
	if len(p.want.uids) > 0 {
		paths[rspec.UserNamespace] = p.nsDir() + "/user"
	}
	return paths
}

func (plan *podPlan) ociMaps() (uids, gids []rspec.LinuxIDMapping) {
	convert := func(maps []ns.IDMap) (out []rspec.LinuxIDMapping) {
		for _, m := range maps {
			out = append(out, rspec.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Size})
		}
		return out
	}
	return convert(plan.uids), convert(plan.gids)
}
