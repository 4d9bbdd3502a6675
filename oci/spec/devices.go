package spec

import (
	"fmt"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// devices sets nodes and the device cgroup's rules. The nodes that every container has (/dev/null, …) and the rules
// for them are the OCI runtime's own, added after ours.
func (b *builder) devices() error {
	rules := []rspec.LinuxDeviceCgroup{{Allow: b.privileged(), Access: "rwm"}}
	if b.privileged() {
		b.spec.Linux.Devices = slices.DeleteFunc(slices.Clone(b.in.Host.Devices), func(d rspec.LinuxDevice) bool {
			return runtimeMakes(d.Path)
		})
	}
	for i, d := range b.in.Devices {
		node, rule, err := translateDevice(fmt.Sprintf("devices[%d].", i), d)
		if err != nil {
			return err
		}
		b.addDevice(node)
		if !b.privileged() {
			rules = append(rules, rule)
		}
	}
	if !b.in.Host.CgroupV2 && !b.in.Host.Controllers["devices"] { // version 2 has no controller but eBPF for it
		b.note("device rules left out: no devices cgroup controller")
		return nil
	}
	b.spec.Linux.Resources.Devices = rules
	return nil
}

// runtimeMakes tells whether a node of the host's /dev lies where the container has its own.
func runtimeMakes(path string) bool {
	return path == "/dev/console" || path == "/dev/ptmx" ||
		strings.HasPrefix(path, "/dev/pts/") || strings.HasPrefix(path, "/dev/shm/") || strings.HasPrefix(path, "/dev/mqueue/")
}

// addDevice puts a node in the place of one with the same path: what the config names is meant.
func (b *builder) addDevice(node rspec.LinuxDevice) {
	list := b.spec.Linux.Devices
	if at := slices.IndexFunc(list, func(o rspec.LinuxDevice) bool { return o.Path == node.Path }); at >= 0 {
		list[at] = node
		return
	}
	b.spec.Linux.Devices = append(list, node)
}

func translateDevice(field string, d Device) (rspec.LinuxDevice, rspec.LinuxDeviceCgroup, error) {
	node := d.Node
	var rule rspec.LinuxDeviceCgroup
	var err error
	if node.Path, err = cleanPath(field+"container_path", node.Path); err != nil {
		return node, rule, err
	}
	if node.Path == "/" {
		return node, rule, invalid(field+"container_path", node.Path, "is the root directory; name a file, below /dev for example")
	}
	if d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "" {
		return node, rule, invalid(field+"permissions", d.Permissions, "is not one or more of r, w and m")
	}
	kind := node.Type
	switch kind {
	case "u": // an unbuffered character device, which the cgroup does not tell apart
		kind = "c"
	case "b", "c":
	default:
		return node, rule, invalid(field+"host_path", node.Type, "is neither a block nor a character device; mount it instead")
	}
	rule = rspec.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &node.Major, Minor: &node.Minor, Access: d.Permissions}
	return node, rule, nil
}
