// Package spec turns a CRI container config into an OCI runtime spec. It is a pure function of its [Input]:
// no files, no syscalls, no clock. It does not check policy; server does.
package spec

import (
	"errors"
	"fmt"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrInvalid is wrapped by every error of this package: the request can't be met as it is, and the text names the
// field, its value and what to do.
var ErrInvalid = errors.New("invalid config")

// invalid is the one form of this package's errors. A value is cut after 200 characters: it came from outside.
func invalid(field, value, remedy string) error {
	return fmt.Errorf("%w: %s %.200q: %s", ErrInvalid, field, value, remedy)
}

// Host is what the machine offers; found once at start by the daemon.
type Host struct {
	CgroupV2 bool
	// Controllers are the cgroup controllers that can be used ("hugetlb", "memory", …). A limit of a controller that
	// is missing is left out of the spec and noted.
	Controllers map[string]bool
	SwapLimits  bool // the kernel counts swap per cgroup
	SELinux     bool
	AppArmor    bool
	Seccomp     bool
	// NoX32: the kernel has no x32 ABI. Its third of the default seccomp profile would filter calls that do not exist,
	// and costs each container and each exec 13 ms to compile.
	NoX32 bool
	// Capabilities are those that the daemon itself has ("CAP_CHOWN"): a privileged container gets these.
	Capabilities []string
	// OOMScoreAdj is the daemon's own; without CAP_SYS_RESOURCE (OOMScoreFloor) no container may get a lower one.
	OOMScoreAdj   int
	OOMScoreFloor bool
	// Devices are the host's device nodes, for privileged containers.
	Devices []rspec.LinuxDevice
	// RecursiveReadOnly: the kernel has mount_setattr(2).
	RecursiveReadOnly bool
	// KernelVersion is for the seccomp profile's minKernel rules.
	KernelMajor, KernelMinor int
	// Arch is the machine's GOARCH, for the seccomp profile; "" is that of this binary.
	Arch string
}

// User is a resolved user: numbers, from the image's passwd and group files where names were given.
type User struct {
	UID, GID       uint32
	AdditionalGIDs []uint32
	Name, Home     string // Home is for $HOME; "/" if unknown
}

// Mount is a CRI mount whose source exists: the server has resolved links, made missing directories, mounted images.
type Mount struct {
	CRI    *cri.Mount
	Source string // host path; for an image volume the mounted (sub)path
}

// Input is all that a spec depends on.
type Input struct {
	Host      Host
	ID        string
	SandboxID string // for the annotations that other OCI runtimes look at; "" leaves it out
	Sandbox   *cri.PodSandboxConfig
	Container *cri.ContainerConfig
	Image     imgspec.ImageConfig
	User      User
	Rootfs    string
	// Namespaces are paths to join: "network", "ipc", "uts", "user", "pid"; those missing are made anew, or the host's
	// where the config or, for mode POD, the pod's config says NODE. "uts" follows "network". "pid" is needed for the
	// modes POD and TARGET and not read for CONTAINER; "user" is made anew only if there are UIDs and GIDs.
	Namespaces map[rspec.LinuxNamespaceType]string
	// CgroupsPath as oci/cgroup.ContainerPath gave it.
	CgroupsPath string
	// Hostname is for $HOSTNAME; HostnamePath, ResolvConfPath, HostsPath, ShmPath are mounted at their usual places
	// unless the config mounts something there; "" leaves them out.
	Hostname                                         string
	HostnamePath, ResolvConfPath, HostsPath, ShmPath string
	Mounts                                           []Mount
	// Devices are the config's devices, looked up by the server: one for each node found below HostPath.
	Devices []Device
	// SELinux labels, "" for none. From the pod's MCS level and the config's options.
	ProcessLabel, MountLabel string
	// LocalhostSeccomp is the content of the profile file that the config names, nil unless it does.
	LocalhostSeccomp []byte
	// UIDs and GIDs are the mappings of the pod's user namespace, also of one that is joined by its path.
	UIDs, GIDs []rspec.LinuxIDMapping
	// Defaults of the daemon's config.
	DefaultCapabilities []string // the set that add and drop start from, "CAP_CHOWN", …
	DefaultUlimits      []rspec.POSIXRlimit
	DefaultEnv          []string
	DefaultSysctls      map[string]string
	DefaultAppArmor     string // name of the loaded profile that RuntimeDefault stands for; "" for none
	PidsLimit           int64  // processes in the container's cgroup; 0 for no limit
}

// Device is one device node for the container.
type Device struct {
	Node        rspec.LinuxDevice // Path is the container's
	Permissions string            // of "rwm"
}

// Output is the spec and what could not be honoured.
type Output struct {
	Spec *rspec.Spec
	// Notes say in a sentence each what was left out because this machine lacks it ("hugepage limit 2Mi left out: no
	// hugetlb controller"). They are shown in the verbose status.
	Notes []string
}
