package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/server/store"
)

// PodSandboxStatus takes no lock. Verbose adds what people look for as JSON under the key "info".
func (s *Server) PodSandboxStatus(_ context.Context, req *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	p, err := s.findPod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &cri.PodSandboxStatusResponse{
		Status: p.status(), ContainersStatuses: s.statusesOf(p), Timestamp: time.Now().UnixNano(),
	}
	if req.GetVerbose() {
		if resp.Info, err = infoOf(s.infoOfPod(p)); err != nil {
			return nil, fmt.Errorf("pod %s: %w", p.id, err)
		}
	}
	return resp, nil
}

// findPod finds a pod that clients may see.
func (s *Server) findPod(id string) (*pod, error) {
	p, err := s.pods.find(id)
	if err == nil && !p.visible() {
		err = fmt.Errorf("%q: %w", id, store.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pod %w", err)
	}
	return p, nil
}

func (p *pod) status() *cri.PodSandboxStatus {
	rec := p.rec.Load()
	status := &cri.PodSandboxStatus{
		Id: string(rec.ID), Metadata: rec.Config.GetMetadata(), State: criPodState(rec.State),
		CreatedAt: rec.CreatedAt.UnixNano(), Network: &cri.PodSandboxNetworkStatus{},
		Labels: rec.Config.GetLabels(), Annotations: rec.Config.GetAnnotations(), RuntimeHandler: rec.Handler,
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: p.options()}},
	}
	if rec.State != store.PodReady {
		return status // its addresses may be another's by now
	}
	for i, ip := range rec.IPs {
		if i == 0 {
			status.Network.Ip = ip.String()
			continue
		}
		status.Network.AdditionalIps = append(status.Network.AdditionalIps, &cri.PodIP{Ip: ip.String()})
	}
	return status
}

func (p *pod) options() *cri.NamespaceOption {
	if o := p.rec.Load().Config.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &cri.NamespaceOption{}
}

// statusesOf are the states of a pod's containers.
func (s *Server) statusesOf(p *pod) []*cri.ContainerStatus {
	var statuses []*cri.ContainerStatus
	for _, c := range s.containersOf(p) {
		if c.visible() {
			statuses = append(statuses, c.status())
		}
	}
	return statuses
}

// podInfo is the verbose part of a pod's status.
type podInfo struct {
	State        string             `json:"state"`
	Pid          int                `json:"pid"` // of the init, 0 where the pod needs none
	CgroupParent string             `json:"cgroupParent"`
	CgroupsMade  []string           `json:"cgroupsMade,omitempty"`
	Network      string             `json:"network,omitempty"`
	Dir          string             `json:"dir"`
	Namespaces   map[string]string  `json:"namespaces,omitempty"`
	Sysctls      map[string]string  `json:"sysctls,omitempty"`
	Notes        []string           `json:"notes"`
	Timings      map[string]float64 `json:"timings"` // milliseconds of each step
	Pending      *store.Pending     `json:"pending,omitempty"`
	Resources    *store.Resources   `json:"-"`
}

// infoOfPod has the notes of the pod's containers, too: who asks what a pod did not get need not ask for each.
func (s *Server) infoOfPod(p *pod) podInfo {
	info := p.info()
	for _, c := range s.containersOf(p) {
		if !c.visible() {
			continue
		}
		rec := c.rec.Load()
		for _, note := range rec.Notes {
			info.Notes = append(info.Notes, "container "+rec.Config.GetMetadata().GetName()+": "+note)
		}
	}
	return info
}

func (p *pod) info() podInfo {
	rec := p.rec.Load()
	info := podInfo{
		State: string(rec.State), Pid: int(p.initPid.Load()), CgroupParent: rec.CgroupParent,
		CgroupsMade: rec.CgroupsMade, Network: rec.Network, Dir: p.dir, Namespaces: map[string]string{},
		Sysctls: p.want.sysctls, Notes: slices.Clip(emptyNotNull(rec.Notes)), Timings: milliseconds(rec.Timings), Pending: rec.Pending,
	}
	for kind, path := range p.namespacePaths() {
		info.Namespaces[string(kind)] = path
	}
	return info
}

// infoOf is the info map of a verbose answer. crictl inspect shows what is JSON as such.
func infoOf(v any) (map[string]string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(b)}, nil
}

func milliseconds(t store.Timings) map[string]float64 {
	ms := make(map[string]float64, len(t))
	for step, d := range t {
		ms[step] = float64(d.Microseconds()) / 1000
	}
	return ms
}

func emptyNotNull(notes []string) []string {
	if notes == nil {
		return []string{}
	}
	return notes
}
