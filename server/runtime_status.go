package server

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Names and versions as the Version RPC has them; the API's is that of the package k8s.io/cri-api/pkg/apis/runtime/v1.
const (
	runtimeName       = "orlop"
	kubeAPIVersion    = "0.1.0" // the kubelet's own, of which there has been one only
	runtimeAPIVersion = "v1"
)

// Version tells name and versions.
func (s *Server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{
		Version: kubeAPIVersion, RuntimeName: runtimeName, RuntimeVersion: s.cfg.Version, RuntimeApiVersion: runtimeAPIVersion,
	}, nil
}

// Status reads memory only. Verbose adds the configuration and what is left to undo, as JSON.
func (s *Server) Status(_ context.Context, req *cri.StatusRequest) (*cri.StatusResponse, error) {
	network := &cri.RuntimeCondition{Type: cri.NetworkReady, Status: true}
	if err := s.Network.Status(); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	resp := &cri.StatusResponse{
		Status: &cri.RuntimeStatus{
			Conditions: []*cri.RuntimeCondition{{Type: cri.RuntimeReady, Status: true}, network},
		},
		Features: &cri.RuntimeFeatures{
			SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: s.userNS, MountOptions: true,
		},
	}
	for _, name := range []string{"", handlerName} {
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &cri.RuntimeHandler{
			Name: name,
			Features: &cri.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: s.Host.RecursiveReadOnly, UserNamespaces: s.userNS,
			},
		})
	}
	if req.GetVerbose() {
		info, err := s.statusInfo()
		if err != nil {
			return nil, fmt.Errorf("status: %w", err)
		}
		resp.Info = info
	}
	return resp, nil
}

func (s *Server) statusInfo() (map[string]string, error) {
	info := map[string]string{}
	for key, v := range map[string]any{
		"pending":  s.pendingNow(),
		"versions": map[string]string{"orlop": s.cfg.Version, "go": runtime.Version(), "cri": runtimeAPIVersion},
		"counts":   map[string]int{"pods": len(s.pods.all()), "containers": len(s.containers.all())},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		info[key] = string(b)
	}
	if len(s.cfg.Shown) > 0 {
		info["config"] = string(s.cfg.Shown)
	}
	return info, nil
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *Server) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	driver := cri.CgroupDriver_CGROUPFS
	if s.cfg.SystemdCgroup {
		driver = cri.CgroupDriver_SYSTEMD
	}
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig is told the node's pod CIDR.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if cidr == "" {
		return &cri.UpdateRuntimeConfigResponse{}, nil
	}
	if err := s.Network.SetPodCIDR(cidr); err != nil {
		return nil, fmt.Errorf("runtime_config.network_config.pod_cidr: %w", err)
	}
	return &cri.UpdateRuntimeConfigResponse{}, nil
}
