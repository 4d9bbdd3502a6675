// Package spec turns pods of the Kubernetes API into what the CRI asks for: sandbox configs, container configs and the
// files beside them. It is pure.
package spec

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/kubelet/pod"
	"github.com/orlop/orlop/kubelet/resource"
	"github.com/orlop/orlop/kubelet/runtime"
)

// Node is what of the node and of the kubelet's configuration bears on every pod.
type Node struct {
	resource.Node
	Hostname       string
	DNS            DNS
	LogsDir        string // podLogsDir
	SeccompDir     string // where localhost profiles lie
	SeccompDefault bool   // containers without a profile get the runtime's default, not none
	CPUs           int    // that can ever be; each has a path to be masked
}

// Sandbox is what a sandbox is made of beside its pod.
type Sandbox struct {
	Pod          *v1.Pod
	Attempt      uint32
	CgroupParent string
	UserIDs      *cri.UserNamespace // nil for the node's user namespace
}

// Config makes the config of a sandbox.
func (n Node) Sandbox(in Sandbox) (*cri.PodSandboxConfig, error) {
	p := in.Pod
	dns, err := n.DNS.Config(p)
	if err != nil {
		return nil, err
	}
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: string(p.UID), Attempt: in.Attempt},
		Labels:       sandboxLabels(p),
		Annotations:  maps.Clone(p.Annotations),
		DnsConfig:    dns,
		LogDirectory: n.LogDir(p),
		PortMappings: portMappings(p),
	}
	if !p.Spec.HostNetwork {
		names, err := Hostname(p, n.DNS.Domain)
		if err != nil {
			return nil, err
		}
		config.Hostname = names.Hostname()
	}
	config.Linux, err = n.linuxSandbox(in)
	return config, err
}

func (n Node) linuxSandbox(in Sandbox) (*cri.LinuxPodSandboxConfig, error) {
	p := in.Pod
	sysctls, err := sysctls(p)
	if err != nil {
		return nil, err
	}
	give := resource.OfPod(p, n.Node)
	return &cri.LinuxPodSandboxConfig{
		CgroupParent: in.CgroupParent,
		Sysctls:      sysctls,
		Overhead:     criResources(p.Spec.Overhead),
		Resources: &cri.LinuxContainerResources{
			CpuPeriod: 100_000, CpuQuota: give.Quota, CpuShares: give.Shares, MemoryLimitInBytes: give.Memory,
		},
		SecurityContext: n.sandboxSecurity(in),
	}, nil
}

func criResources(list v1.ResourceList) *cri.LinuxContainerResources {
	if len(list) == 0 {
		return nil
	}
	return &cri.LinuxContainerResources{
		CpuPeriod: 100_000, CpuQuota: resource.Quota(list.Cpu().MilliValue()),
		CpuShares: resource.Shares(list.Cpu().MilliValue()), MemoryLimitInBytes: list.Memory().Value(),
	}
}

func sandboxLabels(p *v1.Pod) map[string]string {
	labels := map[string]string{}
	maps.Copy(labels, p.Labels)
	maps.Copy(labels, podLabels(p))
	return labels
}

func podLabels(p *v1.Pod) map[string]string {
	return map[string]string{
		runtime.PodNameLabel:      p.Name,
		runtime.PodNamespaceLabel: p.Namespace,
		runtime.PodUIDLabel:       string(p.UID),
	}
}

// LogDir is where the logs of a pod's containers lie, each container's in a directory of its name.
func (n Node) LogDir(p *v1.Pod) string {
	return filepath.Join(n.LogsDir, fmt.Sprintf("%s_%s_%s", p.Namespace, p.Name, p.UID))
}

// LogFile is one attempt's log below the pod's log directory.
func LogFile(container string, attempt uint32) string {
	return filepath.Join(container, fmt.Sprintf("%d.log", attempt))
}

// portMappings are the ports of all containers that run side by side. One without a host port tells CNI plugins nothing.
func portMappings(p *v1.Pod) []*cri.PortMapping {
	if p.Spec.HostNetwork {
		return nil
	}
	var out []*cri.PortMapping
	for c, kind := range pod.Containers(p) {
		if kind == pod.Init || kind == pod.Ephemeral {
			continue
		}
		for _, port := range c.Ports {
			out = append(out, &cri.PortMapping{
				Protocol: protocol(port.Protocol), ContainerPort: port.ContainerPort, HostPort: port.HostPort, HostIp: port.HostIP,
			})
		}
	}
	return out
}

func protocol(p v1.Protocol) cri.Protocol {
	switch p {
	case v1.ProtocolUDP:
		return cri.Protocol_UDP
	case v1.ProtocolSCTP:
		return cri.Protocol_SCTP
	}
	return cri.Protocol_TCP
}

// sysctls are what the pod asks for, with "/" for "." as the kernel's files are named too.
func sysctls(p *v1.Pod) (map[string]string, error) {
	if p.Spec.SecurityContext == nil {
		return nil, nil
	}
	out := map[string]string{}
	for _, s := range p.Spec.SecurityContext.Sysctls {
		name := strings.ReplaceAll(s.Name, "/", ".")
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("spec.securityContext.sysctls: %s is set twice; keep one", name)
		}
		out[name] = s.Value
	}
	return out, nil
}

// Names are a pod's host and domain name.
type Names struct {
	Host   string
	Domain string // "" without a subdomain
	fqdn   bool   // the hostname has the domain in it
}

// maxHostname is the kernel's limit (uname(2)) less the byte that ends it.
const maxHostname = 63

// Hostname is the pod's: its name, or what the spec says, cut to what the kernel holds.
func Hostname(p *v1.Pod, clusterDomain string) (Names, error) {
	if override := p.Spec.HostnameOverride; override != nil { // KEP-4762
		if problems := validation.IsDNS1123Subdomain(*override); len(problems) > 0 {
			return Names{}, fmt.Errorf("spec.hostnameOverride %q: %s", *override, strings.Join(problems, "; "))
		}
		return Names{Host: *override}, nil
	}
	names := Names{Host: p.Name}
	if p.Spec.Hostname != "" {
		if problems := validation.IsDNS1123Label(p.Spec.Hostname); len(problems) > 0 {
			return Names{}, fmt.Errorf("spec.hostname %q: %s", p.Spec.Hostname, strings.Join(problems, "; "))
		}
		names.Host = p.Spec.Hostname
	}
	if len(names.Host) > maxHostname {
		names.Host = strings.TrimRight(names.Host[:maxHostname], "-.")
	}
	if p.Spec.Subdomain == "" {
		return names, nil
	}
	if problems := validation.IsDNS1123Label(p.Spec.Subdomain); len(problems) > 0 {
		return Names{}, fmt.Errorf("spec.subdomain %q: %s", p.Spec.Subdomain, strings.Join(problems, "; "))
	}
	names.Domain = fmt.Sprintf("%s.%s.svc.%s", p.Spec.Subdomain, p.Namespace, clusterDomain)
	names.fqdn = p.Spec.SetHostnameAsFQDN != nil && *p.Spec.SetHostnameAsFQDN
	if names.fqdn && len(names.Hostname()) > maxHostname+1 {
		return Names{}, fmt.Errorf("spec.setHostnameAsFQDN: %q has more than %d characters; shorten hostname or subdomain", names.Hostname(), maxHostname+1)
	}
	return names, nil
}

// Hostname is what the kernel is told.
func (n Names) Hostname() string {
	if n.fqdn {
		return n.Host + "." + n.Domain
	}
	return n.Host
}
