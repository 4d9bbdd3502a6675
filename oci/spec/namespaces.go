package spec

import (
	"slices"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reach says whose namespace of a kind a container lives in.
type reach int

const (
	hosts  reach = iota // the machine's: absent from the spec
	joined              // one that exists, by its path
	own                 // made for this container
)

// wanted is a kind of namespace and the mode that the config gives it.
type wanted struct {
	kind  rspec.LinuxNamespaceType
	field string
	mode  cri.NamespaceMode
}

// namespaces decides for each kind whether to make, join or leave it.
func (b *builder) namespaces() error {
	b.reach = map[rspec.LinuxNamespaceType]reach{rspec.MountNamespace: own}
	opts, pod := b.sec.GetNamespaceOptions(), b.podSecurity().GetNamespaceOptions()
	for _, w := range []wanted{
		{rspec.PIDNamespace, "pid", podMode(opts.GetPid(), pod.GetPid())},
		{rspec.NetworkNamespace, "network", podMode(opts.GetNetwork(), pod.GetNetwork())},
		{rspec.IPCNamespace, "ipc", podMode(opts.GetIpc(), pod.GetIpc())},
	} {
		r, err := b.reachOf(w)
		if err != nil {
			return err
		}
		b.reach[w.kind] = r
	}
	b.reach[rspec.UTSNamespace] = b.utsReach()
	if err := b.userNamespace(); err != nil {
		return err
	}
	// A private cgroup namespace hides the rest of the tree. A privileged container is often an agent of the node
	// that has to see it, and the v1 hierarchies show only the container's own directory anyway.
	if b.in.Host.CgroupV2 && !b.privileged() {
		b.reach[rspec.CgroupNamespace] = own
	}
	return b.listNamespaces()
}

// podMode reads POD as "what the pod has": in a pod on the host's network that is the host's. Clients other than the
// kubelet repeat nothing of the pod's options in the container's.
func podMode(container, pod cri.NamespaceMode) cri.NamespaceMode {
	if container == cri.NamespaceMode_POD && pod == cri.NamespaceMode_NODE {
		return pod
	}
	return container
}

func (b *builder) reachOf(w wanted) (reach, error) {
	field := "linux.security_context.namespace_options." + w.field
	path := b.in.Namespaces[w.kind]
	switch w.mode {
	case cri.NamespaceMode_NODE:
		return hosts, nil
	case cri.NamespaceMode_CONTAINER:
		return own, nil
	case cri.NamespaceMode_TARGET:
		if path == "" {
			return 0, invalid(field, "TARGET", "no namespace of target_id "+
				b.sec.GetNamespaceOptions().GetTargetId()+"; name a running container of this pod")
		}
		return joined, nil
	case cri.NamespaceMode_POD:
		// Never replaced by a PID namespace of the container's own: who asks to share expects to see the others.
		if path == "" && w.kind == rspec.PIDNamespace {
			return 0, invalid(field, "POD", "the pod was made without a PID namespace to share; ask for CONTAINER, or make the pod with POD")
		}
		if path == "" {
			return own, nil
		}
		return joined, nil
	default:
		return 0, invalid(field, w.mode.String(), "is not a known mode; use POD, CONTAINER, NODE or TARGET")
	}
}

// utsReach follows the network, for the CRI has no field for it: a container on the host's network has its name too.
func (b *builder) utsReach() reach {
	switch {
	case b.in.Namespaces[rspec.UTSNamespace] != "":
		return joined
	case b.reach[rspec.NetworkNamespace] == hosts:
		return hosts
	default:
		return own
	}
}

// userNamespace: a container lives in its pod's, which owns the network namespace that it uses.
func (b *builder) userNamespace() error {
	const field = "linux.security_context.namespace_options.userns_options"
	opts := b.sec.GetNamespaceOptions().GetUsernsOptions()
	path, mapped := b.in.Namespaces[rspec.UserNamespace], len(b.in.UIDs) > 0 || len(b.in.GIDs) > 0
	switch mode := opts.GetMode(); {
	case opts != nil && mode != cri.NamespaceMode_POD && mode != cri.NamespaceMode_NODE:
		return invalid(field+".mode", mode.String(), "a user namespace is the pod's or the node's; use POD or NODE")
	case mode == cri.NamespaceMode_NODE && (path != "" || mapped):
		return invalid(field+".mode", "NODE", "the pod has a user namespace, which its containers can't leave; use POD")
	case path != "":
		// No mappings: the namespace has them, and OCI runtimes refuse or warn about a second copy.
		b.reach[rspec.UserNamespace] = joined
	case mapped:
		if len(b.in.UIDs) == 0 || len(b.in.GIDs) == 0 {
			return invalid(field, "", "has only one of uids and gids; give both")
		}
		b.reach[rspec.UserNamespace] = own
		b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = slices.Clone(b.in.UIDs), slices.Clone(b.in.GIDs)
	}
	return nil
}

func (b *builder) inUserNamespace() bool { return b.reach[rspec.UserNamespace] != hosts }

// listNamespaces writes the decisions down in a fixed order, so that equal inputs give equal specs.
func (b *builder) listNamespaces() error {
	for _, kind := range []rspec.LinuxNamespaceType{
		rspec.UserNamespace, rspec.MountNamespace, rspec.PIDNamespace, rspec.NetworkNamespace,
		rspec.IPCNamespace, rspec.UTSNamespace, rspec.CgroupNamespace,
	} {
		ns := rspec.LinuxNamespace{Type: kind}
		switch b.reach[kind] {
		case hosts:
			continue
		case joined:
			var err error
			if ns.Path, err = cleanPath("namespaces."+string(kind), b.in.Namespaces[kind]); err != nil {
				return err
			}
		}
		b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, ns)
	}
	if b.reach[rspec.UTSNamespace] == own {
		b.spec.Hostname = b.in.Hostname // a joined one was named when it was pinned
	}
	return nil
}
