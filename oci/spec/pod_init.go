package spec

import (
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podInitOOMScore is what the kubelet gives a pod's own processes: the last to be killed of what is the pod's.
const podInitOOMScore = -998

// podInitSteps leaves out what a program of our own has no use for: environment, rlimits of the config, devices of the
// config, and all mounts but the two that it needs.
var podInitSteps = []func(*builder) error{
	(*builder).root,
	(*builder).namespaces,
	(*builder).sysctls,
	(*builder).command,
	(*builder).user,
	(*builder).limits,
	(*builder).capabilities,
	(*builder).seccomp,
	(*builder).appArmor,
	(*builder).labels,
	(*builder).hiddenPaths,
	(*builder).podInitMounts,
	(*builder).resources,
	(*builder).devices,
	(*builder).annotations,
	(*builder).markPod,
}

// PodInit makes the OCI spec of the init of a pod that shares its PID namespace: in.Container is nil, in.Rootfs a
// directory that holds only /init and the mount points proc, sys, dev; args are {"/init"}. It has no capability, a
// read-only root, masked paths and the runtime default seccomp profile, whatever the pod asks for its containers.
func PodInit(in Input) (*Output, error) {
	pod := in.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions()
	in.Container = &cri.ContainerConfig{
		Command: []string{"/init"},
		Linux: &cri.LinuxContainerConfig{
			// Where the kernel does not let us, the score is as low as it lets us: this wish is ours, so no note.
			Resources: &cri.LinuxContainerResources{OomScoreAdj: int64(in.Host.lowestOOMScore(podInitOOMScore))},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				Capabilities:   &cri.Capability{DropCapabilities: []string{allCapabilities}},
				NoNewPrivs:     true,
				ReadonlyRootfs: true,
				MaskedPaths:    defaultMasked,
				ReadonlyPaths:  defaultReadonly,
				Seccomp:        &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
				Apparmor:       &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
				NamespaceOptions: &cri.NamespaceOption{
					Network: pod.GetNetwork(),
					Ipc:     pod.GetIpc(),
					Pid:     cri.NamespaceMode_CONTAINER, // its own is the one that the containers then join
				},
			},
		},
	}
	in.Image.WorkingDir, in.DefaultUlimits, in.Devices, in.PidsLimit = "", nil, nil, 0
	return build(in, podInitSteps)
}

// podInitMounts are /proc, and /dev because OCI runtimes make their nodes there and the directory is shared by pods.
func (b *builder) podInitMounts() error {
	b.spec.Mounts = []rspec.Mount{
		b.procMount(),
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
	}
	return nil
}

func (b *builder) markPod() error {
	b.spec.Annotations[annotationType] = "sandbox"
	return nil
}
