// Package ns makes the namespaces of a pod and pins them as bind mounts in the pod's directory, so that they live
// without a process.
package ns

import "context"

// IDMap maps Size IDs from ContainerID on to IDs from HostID on, as in user_namespaces(7).
type IDMap struct{ ContainerID, HostID, Size uint32 }

// Options says which namespaces a pod gets of its own.
type Options struct {
	// Dir is where they are pinned: Dir/net, Dir/ipc, Dir/uts, Dir/user.
	Dir           string
	Net, IPC, UTS bool
	// User asks for a user namespace with these maps, which then owns the others.
	User       bool
	UIDs, GIDs []IDMap
	// Hostname is set in the UTS namespace; "" leaves the host's.
	Hostname string
	// Sysctls are written in the new namespaces. Each must belong to a namespace that is made (see Namespaced).
	Sysctls map[string]string
}

// Create makes and pins what o asks for, brings up loopback in a new network namespace, and sets host name and
// sysctls. If it fails, nothing is left. A repeat after success changes nothing.
func Create(ctx context.Context, o Options) error { panic("ns: owner fills this in") }

// Delete unpins all that is in dir and removes dir. It succeeds if there is nothing.
func Delete(ctx context.Context, dir string) error { panic("todo") }

// Namespaced tells which namespace a sysctl belongs to: "net", "ipc" or "uts"; "" if it is the whole node's.
func Namespaced(sysctl string) string { panic("todo") }

// Do runs f in the network namespace at path.
func Do(path string, f func() error) error { panic("todo") }
