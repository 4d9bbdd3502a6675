package spec

import (
	"fmt"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// builder carries a spec through the steps that fill it in. A step reads the input and what the steps before it left.
type builder struct {
	in    Input
	cfg   *cri.ContainerConfig               // never nil
	sec   *cri.LinuxContainerSecurityContext // nil is fine: its getters take it
	reach map[rspec.LinuxNamespaceType]reach // filled in by namespaces
	spec  *rspec.Spec
	notes []string
}

// containerSteps in an order that matters: capabilities, mounts and sysctls depend on the namespaces, the seccomp
// profile on the capabilities.
var containerSteps = []func(*builder) error{
	(*builder).checkPrivilege,
	(*builder).root,
	(*builder).namespaces,
	(*builder).sysctls,
	(*builder).command,
	(*builder).environment,
	(*builder).user,
	(*builder).limits,
	(*builder).capabilities,
	(*builder).seccomp,
	(*builder).appArmor,
	(*builder).labels,
	(*builder).hiddenPaths,
	(*builder).mounts,
	(*builder).resources,
	(*builder).devices,
	(*builder).annotations,
}

// Container makes the OCI spec of a container. Errors wrap ErrInvalid and name the field and value.
func Container(in Input) (*Output, error) {
	if in.Container == nil {
		return nil, fmt.Errorf("%w: no container config", ErrInvalid)
	}
	return build(in, containerSteps)
}

func build(in Input, steps []func(*builder) error) (*Output, error) {
	b := &builder{
		in:  in,
		cfg: in.Container,
		sec: in.Container.GetLinux().GetSecurityContext(),
		spec: &rspec.Spec{
			Version: rspec.Version,
			Process: &rspec.Process{},
			Linux:   &rspec.Linux{CgroupsPath: in.CgroupsPath, Resources: &rspec.LinuxResources{}},
		},
	}
	for _, step := range steps {
		if err := step(b); err != nil {
			return nil, err
		}
	}
	return &Output{Spec: b.spec, Notes: b.notes}, nil
}

// note records what could not be honoured, as a sentence for people.
func (b *builder) note(format string, args ...any) {
	b.notes = append(b.notes, fmt.Sprintf(format, args...))
}

func (b *builder) privileged() bool { return b.sec.GetPrivileged() }

// podSecurity is the pod's side of what a container asks for.
func (b *builder) podSecurity() *cri.LinuxSandboxSecurityContext {
	return b.in.Sandbox.GetLinux().GetSecurityContext()
}

// checkPrivilege keeps to the CRI: a pod that is to hold a privileged container MUST have said so when it was made.
func (b *builder) checkPrivilege() error {
	if b.privileged() && !b.podSecurity().GetPrivileged() {
		return invalid("linux.security_context.privileged", "true",
			"the pod was not made for privileged containers; set privileged in the pod's security context too")
	}
	return nil
}

func (b *builder) root() error {
	dir, err := cleanPath("rootfs", b.in.Rootfs)
	if err != nil {
		return err
	}
	b.spec.Root = &rspec.Root{Path: dir, Readonly: b.sec.GetReadonlyRootfs()}
	return nil
}
