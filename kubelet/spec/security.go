package spec

import (
	"fmt"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What a container may not see, or not change, of /proc and /sys unless its procMount is Unmasked: what tells about or
// steers the whole node. The lists are kubelet's.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readOnlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// namespaces are a pod's, or those of one of its containers, whose PID namespace differs.
func namespaces(p *v1.Pod, users *cri.UserNamespace) *cri.NamespaceOption {
	opts := &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Ipc: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: users}
	if p.Spec.HostNetwork {
		opts.Network = cri.NamespaceMode_NODE
	}
	if p.Spec.HostIPC {
		opts.Ipc = cri.NamespaceMode_NODE
	}
	switch {
	case p.Spec.HostPID:
		opts.Pid = cri.NamespaceMode_NODE
	case p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace:
		opts.Pid = cri.NamespaceMode_POD
	}
	return opts
}

func (n Node) sandboxSecurity(in Sandbox) *cri.LinuxSandboxSecurityContext {
	p := in.Pod
	out := &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(p, in.UserIDs),
		Privileged:       privilegedPod(p),
		// Nothing of a pod's runs in a sandbox but a process that waits.
		Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
	}
	sc := p.Spec.SecurityContext
	if sc == nil {
		return out
	}
	out.SelinuxOptions = selinux(sc.SELinuxOptions)
	out.RunAsUser, out.RunAsGroup = id(sc.RunAsUser), id(sc.RunAsGroup)
	out.SupplementalGroups, out.SupplementalGroupsPolicy = groups(sc)
	return out
}

func privilegedPod(p *v1.Pod) bool {
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if privileged(&list[i]) {
				return true
			}
		}
	}
	return false
}

func privileged(c *v1.Container) bool {
	return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
}

func id(n *int64) *cri.Int64Value {
	if n == nil {
		return nil
	}
	return &cri.Int64Value{Value: *n}
}

func groups(sc *v1.PodSecurityContext) ([]int64, cri.SupplementalGroupsPolicy) {
	var out []int64
	out = append(out, sc.SupplementalGroups...)
	if sc.FSGroup != nil {
		out = append(out, *sc.FSGroup)
	}
	if sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict {
		return out, cri.SupplementalGroupsPolicy_Strict
	}
	return out, cri.SupplementalGroupsPolicy_Merge
}

func selinux(o *v1.SELinuxOptions) *cri.SELinuxOption {
	if o == nil {
		return nil
	}
	return &cri.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func (n Node) containerSecurity(in Container) (*cri.LinuxContainerSecurityContext, error) {
	sc := effective(in.Pod, in.Container)
	if err := checkNonRoot(sc, in.ImageUser); err != nil {
		return nil, err
	}
	out := &cri.LinuxContainerSecurityContext{
		Privileged:       privileged(in.Container),
		NamespaceOptions: namespaces(in.Pod, in.UserIDs),
		Capabilities:     capabilities(sc.Capabilities),
		SelinuxOptions:   selinux(sc.SELinuxOptions),
		RunAsUser:        id(sc.RunAsUser),
		RunAsGroup:       id(sc.RunAsGroup),
		ReadonlyRootfs:   sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem,
		NoNewPrivs:       sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
	}
	if pod := in.Pod.Spec.SecurityContext; pod != nil {
		out.SupplementalGroups, out.SupplementalGroupsPolicy = groups(pod)
	}
	if in.Target != "" {
		out.NamespaceOptions.Pid, out.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, in.Target
	}
	if out.RunAsUser == nil { // the user that the image names; CRI wants to be told
		out.RunAsUser, out.RunAsUsername = imageUser(in.ImageUser)
	}
	if sc.ProcMount == nil || *sc.ProcMount != v1.UnmaskedProcMount {
		out.MaskedPaths, out.ReadonlyPaths = n.masked(), readOnlyPaths
	}
	var err error
	if out.Seccomp, err = n.seccomp(sc.SeccompProfile); err != nil {
		return nil, err
	}
	out.Apparmor, err = apparmor(sc.AppArmorProfile)
	return out, err
}

// imageUser is what CRI tells of an image's user: a number or a name. Without a user it is root.
func imageUser(image *cri.Image) (*cri.Int64Value, string) {
	if image.GetUid() != nil {
		return &cri.Int64Value{Value: image.Uid.Value}, ""
	}
	return nil, image.GetUsername()
}

// masked adds each CPU's thermal throttling counters, a side channel between containers.
func (n Node) masked() []string {
	out := append(make([]string, 0, len(maskedPaths)+n.CPUs), maskedPaths...)
	for cpu := range n.CPUs {
		out = append(out, fmt.Sprintf("/sys/devices/system/cpu/cpu%d/thermal_throttle", cpu))
	}
	return out
}

// effective is what a container gets: its own settings, and those of its pod that it does not set.
func effective(p *v1.Pod, c *v1.Container) *v1.SecurityContext {
	sc := &v1.SecurityContext{}
	if c.SecurityContext != nil {
		sc = c.SecurityContext.DeepCopy()
	}
	all := p.Spec.SecurityContext
	if all == nil {
		return sc
	}
	inherit(&sc.SELinuxOptions, all.SELinuxOptions)
	inherit(&sc.RunAsUser, all.RunAsUser)
	inherit(&sc.RunAsGroup, all.RunAsGroup)
	inherit(&sc.RunAsNonRoot, all.RunAsNonRoot)
	inherit(&sc.SeccompProfile, all.SeccompProfile)
	inherit(&sc.AppArmorProfile, all.AppArmorProfile)
	return sc
}

func inherit[T any](own **T, all *T) {
	if *own == nil {
		*own = all
	}
}

// checkNonRoot refuses to run as root what must not.
func checkNonRoot(sc *v1.SecurityContext, image *cri.Image) error {
	if sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot {
		return nil
	}
	switch {
	case sc.RunAsUser != nil:
		if *sc.RunAsUser == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy")
		}
	case image.GetUid() != nil:
		if image.Uid.Value == 0 {
			return fmt.Errorf("container has runAsNonRoot and image will run as root")
		}
	case image.GetUsername() != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root", image.Username)
	default:
		return fmt.Errorf("container has runAsNonRoot and image will run as root")
	}
	return nil
}

func capabilities(c *v1.Capabilities) *cri.Capability {
	if c == nil {
		return nil
	}
	out := &cri.Capability{}
	for _, name := range c.Add {
		out.AddCapabilities = append(out.AddCapabilities, string(name))
	}
	for _, name := range c.Drop {
		out.DropCapabilities = append(out.DropCapabilities, string(name))
	}
	return out
}

func (n Node) seccomp(profile *v1.SeccompProfile) (*cri.SecurityProfile, error) {
	if profile == nil {
		if n.SeccompDefault {
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	}
	switch profile.Type {
	case v1.SeccompProfileTypeUnconfined:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	case v1.SeccompProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	case v1.SeccompProfileTypeLocalhost:
		if profile.LocalhostProfile == nil || !filepath.IsLocal(*profile.LocalhostProfile) {
			return nil, fmt.Errorf("seccompProfile.localhostProfile: must be a path below %s, and stay in it", n.SeccompDir)
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: filepath.Join(n.SeccompDir, *profile.LocalhostProfile)}, nil
	}
	return nil, fmt.Errorf("seccompProfile.type %q: unknown; write RuntimeDefault, Unconfined or Localhost", profile.Type)
}

func apparmor(profile *v1.AppArmorProfile) (*cri.SecurityProfile, error) {
	if profile == nil {
		return nil, nil
	}
	switch profile.Type {
	case v1.AppArmorProfileTypeUnconfined:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	case v1.AppArmorProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	case v1.AppArmorProfileTypeLocalhost:
		if profile.LocalhostProfile == nil {
			return nil, fmt.Errorf("appArmorProfile.localhostProfile: missing; name a profile that is loaded on the node")
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: *profile.LocalhostProfile}, nil
	}
	return nil, fmt.Errorf("appArmorProfile.type %q: unknown; write RuntimeDefault, Unconfined or Localhost", profile.Type)
}
