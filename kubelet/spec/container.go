package spec

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/env"
	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/resource"
	"github.com/orlop/orlop/kubelet/runtime"
)

// Container is what a container is made of beside its pod.
type Container struct {
	Pod       *v1.Pod
	Container *v1.Container
	Attempt   uint32
	Image     *cri.ImageSpec
	ImageUser *cri.Image // as the image says, for runAsNonRoot
	Env       []*cri.KeyValue
	Mounts    []*cri.Mount
	Devices   []*cri.Device
	Target    string             // the container whose PID namespace is joined: ephemeral containers
	UserIDs   *cri.UserNamespace // of the sandbox
}

// Container makes the config of a container. What it refuses is a mistake in the pod, or in its image.
func (n Node) Container(in Container) (*cri.ContainerConfig, error) {
	c := in.Container
	security, err := n.containerSecurity(in)
	if err != nil {
		return nil, err
	}
	annotations, err := annotations(in)
	if err != nil {
		return nil, err
	}
	labels := podLabels(in.Pod)
	labels[runtime.ContainerNameLabel] = c.Name
	return &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: c.Name, Attempt: in.Attempt},
		Image:       in.Image,
		Command:     env.ExpandAll(c.Command, in.Env),
		Args:        env.ExpandAll(c.Args, in.Env),
		WorkingDir:  c.WorkingDir,
		Envs:        in.Env,
		Mounts:      in.Mounts,
		Devices:     in.Devices,
		Labels:      labels,
		Annotations: annotations,
		LogPath:     LogFile(c.Name, in.Attempt),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		StopSignal:  stopSignal(c),
		Linux:       &cri.LinuxContainerConfig{Resources: resource.Container(in.Pod, c, n.Node), SecurityContext: security},
	}, nil
}

// Hash changes when a running container must be replaced: for another image. All else of a container of a pod is
// immutable, or changed in place.
func Hash(c *v1.Container) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%q %q", c.Name, c.Image)
	return strconv.FormatUint(uint64(h.Sum32()), 16)
}

// annotations let the container be understood when its pod is gone, or this process is new.
func annotations(in Container) (map[string]string, error) {
	c := in.Container
	out := map[string]string{
		runtime.HashAnnotation:          Hash(c),
		runtime.RestartCountAnnotation:  strconv.FormatUint(uint64(in.Attempt), 10),
		runtime.MessagePathAnnotation:   c.TerminationMessagePath,
		runtime.MessagePolicyAnnotation: string(c.TerminationMessagePolicy),
		runtime.GraceAnnotation:         strconv.FormatInt(pod.GracePeriodSeconds(in.Pod), 10),
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		hook, err := json.Marshal(c.Lifecycle.PreStop)
		if err != nil {
			return nil, fmt.Errorf("lifecycle.preStop: %w", err)
		}
		out[runtime.PreStopAnnotation] = string(hook)
	}
	return out, nil
}

// SignalName writes a signal of CRI as the API does: SIGNAL_SIGRTMINPLUS1 is SIGRTMIN+1.
func SignalName(s cri.Signal) v1.Signal {
	return v1.Signal(strings.NewReplacer("SIGNAL_", "", "PLUS", "+", "MINUS", "-").Replace(s.String()))
}

// stopSignal is what the pod asks for (KEP-4960), else the image's.
func stopSignal(c *v1.Container) cri.Signal {
	if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
		return cri.Signal_SIGNAL_RUNTIME_DEFAULT
	}
	return cri.Signal(cri.Signal_value["SIGNAL_"+strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(string(*c.Lifecycle.StopSignal))])
}
