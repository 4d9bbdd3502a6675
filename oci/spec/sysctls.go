package spec

import (
	"maps"
	"slices"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// ipcSysctls are those of System V IPC; with fs.mqueue they are all of the IPC namespace's, see ipc_namespaces(7).
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
	"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
}

// sysctls sets the pod's in those namespaces that are made for this container. One that is joined has them since it
// was pinned, and the host's are not the pod's to change: the server refuses such a pod.
func (b *builder) sysctls() error {
	all := maps.Clone(b.in.DefaultSysctls)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, b.in.Sandbox.GetLinux().GetSysctls())
	for _, key := range slices.Sorted(maps.Keys(all)) {
		name := dotted(key)
		if b.reach[sysctlNamespace(name)] != own {
			continue
		}
		if !plainSysctl(name) {
			return invalid("linux.sysctls", key, "is not the name of a sysctl; write it like net.ipv4.ip_forward")
		}
		if b.spec.Linux.Sysctl == nil {
			b.spec.Linux.Sysctl = map[string]string{}
		}
		b.spec.Linux.Sysctl[key] = all[key]
	}
	return nil
}

// plainSysctl tells whether a name in dotted form is a path below /proc/sys that stays where its first elements say.
// A "/" in it stands for a "." in a file's name, so "//" is "..".
func plainSysctl(name string) bool {
	for _, element := range strings.Split(name, ".") {
		if element == "" || strings.Trim(element, "/") == "" || strings.ContainsRune(element, 0) {
			return false
		}
	}
	return true
}

// dotted converts net/ipv4/conf/eth0.1/forwarding to net.ipv4.conf.eth0/1.forwarding, as sysctl(8) does: the first
// separator decides which form it is.
func dotted(key string) string {
	i := strings.IndexAny(key, "./")
	if i < 0 || key[i] == '.' {
		return key
	}
	return strings.NewReplacer("/", ".", ".", "/").Replace(key)
}

// sysctlNamespace is the kind of namespace that a sysctl in dotted form belongs to, "" for the whole machine's.
func sysctlNamespace(name string) rspec.LinuxNamespaceType {
	switch {
	case strings.HasPrefix(name, "net."):
		return rspec.NetworkNamespace
	case strings.HasPrefix(name, "fs.mqueue."), slices.Contains(ipcSysctls, name):
		return rspec.IPCNamespace
	case name == "kernel.domainname":
		return rspec.UTSNamespace
	case strings.HasPrefix(name, "user."):
		return rspec.UserNamespace
	}
	return ""
}
