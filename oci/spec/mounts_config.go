package spec

import (
	"fmt"
	"slices"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// configMounts translates the config's mounts in their order. Of two at one place the later counts, as it would if
// both were mounted.
func (b *builder) configMounts() ([]rspec.Mount, error) {
	var mounts []rspec.Mount
	for i, m := range b.in.Mounts {
		c := configMount{Mount: m, field: fmt.Sprintf("mounts[%d].", i)}
		out, err := c.translate(b.in.Host)
		if err != nil {
			return nil, err
		}
		b.raisePropagation(m.CRI.GetPropagation())
		if at := slices.IndexFunc(mounts, func(o rspec.Mount) bool { return o.Destination == out.Destination }); at >= 0 {
			b.note("mount of %s at %s left out: the config mounts another there later", mounts[at].Source, out.Destination)
			mounts = slices.Delete(mounts, at, at+1)
		}
		mounts = append(mounts, out)
	}
	return mounts, nil
}

// raisePropagation gives the root what the mount with the strongest wish needs: events pass only through a root that
// receives (rslave) or shares (rshared) them.
func (b *builder) raisePropagation(p cri.MountPropagation) {
	root := &b.spec.Linux.RootfsPropagation
	switch {
	case p == cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		*root = "rshared"
	case p == cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && *root == "":
		*root = "rslave"
	}
}

// configMount is one mount of the config and what its fields are called in errors.
type configMount struct {
	Mount
	field string
}

func (c configMount) translate(h Host) (rspec.Mount, error) {
	var none rspec.Mount
	dest, err := cleanPath(c.field+"container_path", c.CRI.GetContainerPath())
	if err != nil {
		return none, err
	}
	if dest == "/" {
		return none, invalid(c.field+"container_path", c.CRI.GetContainerPath(), "would cover the root file system; mount it elsewhere")
	}
	if c.CRI.GetImage() != nil && c.CRI.GetHostPath() != "" {
		return none, invalid(c.field+"host_path", c.CRI.GetHostPath(), "an image is to be mounted too; set one of them")
	}
	source, err := cleanPath(c.field+"host_path", c.Source)
	if err != nil {
		return none, err
	}
	options, err := c.options(h)
	if err != nil {
		return none, err
	}
	uids, gids, err := c.mappings()
	if err != nil {
		return none, err
	}
	return rspec.Mount{Destination: dest, Type: "bind", Source: source, Options: options,
		UIDMappings: uids, GIDMappings: gids}, nil
}

// restricting are the mount_options that take something away. Others could undo readonly or the propagation.
var restricting = []string{"noexec", "nodev", "nosuid", "nosymfollow", "noatime", "nodiratime"}

func (c configMount) options(h Host) ([]string, error) {
	propagation, err := c.propagation()
	if err != nil {
		return nil, err
	}
	access, err := c.access(h)
	if err != nil {
		return nil, err
	}
	options := []string{"rbind", propagation, access}
	for i, o := range c.CRI.GetMountOptions() {
		if !slices.Contains(restricting, o) {
			return nil, invalid(fmt.Sprintf("%smount_options[%d]", c.field, i), o,
				fmt.Sprintf("is not supported; use some of %v", restricting))
		}
		if !slices.Contains(options, o) {
			options = append(options, o)
		}
	}
	return options, nil
}

func (c configMount) propagation() (string, error) {
	switch p := c.CRI.GetPropagation(); p {
	case cri.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		return "rslave", nil
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return "rshared", nil
	default:
		return "", invalid(c.field+"propagation", p.String(), "is not a known mode; use PRIVATE, HOST_TO_CONTAINER or BIDIRECTIONAL")
	}
}

// access keeps to the CRI's text: recursive_read_only needs readonly, and PRIVATE propagation, since a mount that
// arrives later would be writable. An image is always read-only.
func (c configMount) access(h Host) (string, error) {
	field := c.field + "recursive_read_only"
	switch private := c.CRI.GetPropagation() == cri.MountPropagation_PROPAGATION_PRIVATE; {
	case c.CRI.GetRecursiveReadOnly() && !c.CRI.GetReadonly():
		return "", invalid(field, "true", "the mount is not readonly; set readonly too")
	case c.CRI.GetRecursiveReadOnly() && !private:
		return "", invalid(field, "true", "propagation is "+c.CRI.GetPropagation().String()+"; it must be PROPAGATION_PRIVATE")
	case c.CRI.GetRecursiveReadOnly() && !h.RecursiveReadOnly:
		return "", invalid(field, "true", "the kernel has no mount_setattr(2), new in Linux 5.12; set it false")
	case c.CRI.GetRecursiveReadOnly():
		return "rro", nil
	case c.CRI.GetReadonly(), c.CRI.GetImage() != nil:
		return "ro", nil
	default:
		return "rw", nil
	}
}

// mappings make an id-mapped mount, which the kernel wants for users and groups alike.
func (c configMount) mappings() (uids, gids []rspec.LinuxIDMapping, err error) {
	if uids, err = idMappings(c.field+"uidMappings", c.CRI.GetUidMappings()); err != nil {
		return nil, nil, err
	}
	if gids, err = idMappings(c.field+"gidMappings", c.CRI.GetGidMappings()); err != nil {
		return nil, nil, err
	}
	if (uids == nil) != (gids == nil) {
		return nil, nil, invalid(c.field+"uidMappings", fmt.Sprint(len(uids)), "there are as many gidMappings as "+
			fmt.Sprint(len(gids))+"; give both or none")
	}
	return uids, gids, nil
}

func idMappings(field string, in []*cri.IDMapping) ([]rspec.LinuxIDMapping, error) {
	var out []rspec.LinuxIDMapping
	for i, m := range in {
		if m.GetLength() == 0 {
			return nil, invalid(fmt.Sprintf("%s[%d].length", field, i), "0", "maps nothing; give the number of IDs")
		}
		out = append(out, rspec.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out, nil
}
