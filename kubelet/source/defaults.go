package source

import (
	"errors"
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/orlop/orlop/kubelet/pod"
)

// setDefaults gives a pod what an API server gives each (pkg/apis/core/v1/defaults.go of Kubernetes).
func setDefaults(p *v1.Pod) {
	spec := &p.Spec
	fill(&spec.RestartPolicy, v1.RestartPolicyAlways)
	fill(&spec.DNSPolicy, v1.DNSClusterFirst)
	fill(&spec.SchedulerName, v1.DefaultSchedulerName)
	fillPointer(&spec.TerminationGracePeriodSeconds, int64(v1.DefaultTerminationGracePeriodSeconds))
	fillPointer(&spec.EnableServiceLinks, v1.DefaultEnableServiceLinks)
	if spec.SecurityContext == nil {
		spec.SecurityContext = &v1.PodSecurityContext{}
	}
	for _, list := range [][]v1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			containerDefaults(&list[i], spec.HostNetwork)
		}
	}
	for i := range spec.Volumes {
		volumeDefaults(&spec.Volumes[i])
	}
	p.Status.QOSClass = pod.QoS(p)
}

func fill[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

func fillPointer[T any](to **T, value T) {
	if *to == nil {
		*to = &value
	}
}

func containerDefaults(c *v1.Container, hostNetwork bool) {
	fill(&c.TerminationMessagePath, v1.TerminationMessagePathDefault)
	fill(&c.TerminationMessagePolicy, v1.TerminationMessageReadFile)
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = v1.PullIfNotPresent
		last := c.Image[strings.LastIndex(c.Image, "/")+1:]
		if strings.HasSuffix(last, ":latest") || !strings.ContainsAny(last, ":@") {
			c.ImagePullPolicy = v1.PullAlways
		}
	}
	for i := range c.Ports {
		fill(&c.Ports[i].Protocol, v1.ProtocolTCP)
		if hostNetwork {
			fill(&c.Ports[i].HostPort, c.Ports[i].ContainerPort)
		}
	}
	for name, limit := range c.Resources.Limits {
		if _, has := c.Resources.Requests[name]; !has {
			if c.Resources.Requests == nil {
				c.Resources.Requests = v1.ResourceList{}
			}
			c.Resources.Requests[name] = limit.DeepCopy()
		}
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FieldRef != nil {
			fill(&from.FieldRef.APIVersion, "v1")
		}
	}
	for _, probe := range []*v1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		probeDefaults(probe)
	}
	if c.Lifecycle != nil {
		for _, h := range []*v1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil && h.HTTPGet != nil {
				httpDefaults(h.HTTPGet)
			}
		}
	}
}

func probeDefaults(p *v1.Probe) {
	if p == nil {
		return
	}
	fill(&p.TimeoutSeconds, 1)
	fill(&p.PeriodSeconds, 10)
	fill(&p.SuccessThreshold, 1)
	fill(&p.FailureThreshold, 3)
	if p.HTTPGet != nil {
		httpDefaults(p.HTTPGet)
	}
	if p.GRPC != nil {
		fillPointer(&p.GRPC.Service, "")
	}
}

func httpDefaults(h *v1.HTTPGetAction) {
	fill(&h.Path, "/")
	fill(&h.Scheme, v1.URISchemeHTTP)
}

func volumeDefaults(v *v1.Volume) {
	const mode = int32(0o644)
	if v.VolumeSource == (v1.VolumeSource{}) {
		v.EmptyDir = &v1.EmptyDirVolumeSource{}
	}
	switch {
	case v.HostPath != nil:
		fillPointer(&v.HostPath.Type, v1.HostPathUnset)
	case v.Secret != nil:
		fillPointer(&v.Secret.DefaultMode, mode)
	case v.ConfigMap != nil:
		fillPointer(&v.ConfigMap.DefaultMode, mode)
	case v.DownwardAPI != nil:
		fillPointer(&v.DownwardAPI.DefaultMode, mode)
		fieldDefaults(v.DownwardAPI.Items)
	case v.Projected != nil:
		fillPointer(&v.Projected.DefaultMode, mode)
		for i := range v.Projected.Sources {
			if d := v.Projected.Sources[i].DownwardAPI; d != nil {
				fieldDefaults(d.Items)
			}
			if t := v.Projected.Sources[i].ServiceAccountToken; t != nil {
				fillPointer(&t.ExpirationSeconds, 3600)
			}
		}
	case v.Image != nil && v.Image.PullPolicy == "":
		v.Image.PullPolicy = v1.PullIfNotPresent
		if strings.HasSuffix(v.Image.Reference, ":latest") {
			v.Image.PullPolicy = v1.PullAlways
		}
	}
}

func fieldDefaults(items []v1.DownwardAPIVolumeFile) {
	for i := range items {
		if items[i].FieldRef != nil {
			fill(&items[i].FieldRef.APIVersion, "v1")
		}
	}
}

// check finds the mistakes that an API server would have refused and that would otherwise surface as riddles later.
func check(p *v1.Pod) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, problem := range validation.IsDNS1123Subdomain(p.Name) {
		bad("metadata.name %q: %s", p.Name, problem)
	}
	for _, problem := range validation.IsDNS1123Label(p.Namespace) {
		bad("metadata.namespace %q: %s", p.Namespace, problem)
	}
	switch p.Spec.RestartPolicy {
	case v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever:
	default:
		bad("spec.restartPolicy %q: write Always, OnFailure or Never", p.Spec.RestartPolicy)
	}
	if len(p.Spec.Containers) == 0 {
		bad("spec.containers: empty; a pod needs at least one container")
	}
	volumes := map[string]bool{}
	for _, v := range p.Spec.Volumes {
		if volumes[v.Name] || len(validation.IsDNS1123Label(v.Name)) > 0 {
			bad("spec.volumes: name %q: must be a DNS label that no other volume has", v.Name)
		}
		volumes[v.Name] = true
	}
	names := map[string]bool{}
	for c, kind := range pod.Containers(p) {
		if kind == pod.Ephemeral {
			bad("spec.ephemeralContainers: only an API server can add some")
			break
		}
		if names[c.Name] || len(validation.IsDNS1123Label(c.Name)) > 0 {
			bad("container name %q: must be a DNS label that no other container has", c.Name)
		}
		names[c.Name] = true
		errs = append(errs, checkContainer(c, volumes)...)
	}
	return errors.Join(errs...)
}

func checkContainer(c *v1.Container, volumes map[string]bool) []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("container %s: "+format, append([]any{c.Name}, args...)...))
	}
	if c.Image == "" {
		bad("image: missing")
	}
	for _, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			bad("volumeMounts: no volume %q in spec.volumes", m.Name)
		}
		if m.MountPath == "" || strings.Contains(m.MountPath, ":") {
			bad("volumeMounts: mountPath %q: must be a path without a colon", m.MountPath)
		}
	}
	for _, port := range c.Ports {
		if port.ContainerPort < 1 || port.ContainerPort > 65535 || port.HostPort < 0 || port.HostPort > 65535 {
			bad("ports: %d (host port %d): must be from 1 to 65535", port.ContainerPort, port.HostPort)
		}
	}
	for name, limit := range c.Resources.Limits {
		if request := c.Resources.Requests[name]; request.Cmp(limit) > 0 {
			bad("resources: request of %s %s is above the limit %s", name, request.String(), limit.String())
		}
	}
	for _, probe := range []*v1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		if probe != nil && probe.HTTPGet != nil && probe.HTTPGet.Port == (intstr.IntOrString{}) {
			bad("probe: httpGet.port: missing")
		}
	}
	return errs
}
