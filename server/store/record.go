package store

import (
	"encoding/json"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodID and ContainerID are 64 hexadecimal digits.
type (
	PodID       string
	ContainerID string
)

// Timings are how long each step took, by its name.
type Timings map[string]time.Duration

// Pod is what is on record of a pod. A record is not changed once it has been put: a change is a copy.
type Pod struct {
	ID        PodID                 `json:"id"`
	State     PodState              `json:"state"`
	Config    *cri.PodSandboxConfig `json:"-"`
	Handler   string                `json:"handler,omitempty"`
	CreatedAt time.Time             `json:"createdAt"`
	// CgroupParent is the pod's cgroup: the config's or the default.
	CgroupParent string `json:"cgroupParent"`
	// CgroupsMade are the directories that were made for it, outermost first.
	CgroupsMade []string `json:"cgroupsMade,omitempty"`
	// IPs are those that the network gave; the first is the primary one.
	IPs     []netip.Addr `json:"ips,omitempty"`
	Network string       `json:"network,omitempty"`
	// ProcessLabel and MountLabel are the pod's SELinux labels, "" without SELinux.
	ProcessLabel string   `json:"processLabel,omitempty"`
	MountLabel   string   `json:"mountLabel,omitempty"`
	Notes        []string `json:"notes,omitempty"`
	Timings      Timings  `json:"timings,omitempty"`
	// Resources and Overhead are those of the last update, nil before the first.
	Resources *Resources `json:"resources,omitempty"`
	Overhead  *Resources `json:"overhead,omitempty"`
	// Pending is why a stop or remove could not be finished yet.
	Pending *Pending `json:"pending,omitempty"`
}

// Container is what is on record of a container. A record is not changed once it has been put: a change is a copy.
type Container struct {
	ID        ContainerID          `json:"id"`
	Pod       PodID                `json:"pod"`
	State     ContainerState       `json:"state"`
	Config    *cri.ContainerConfig `json:"-"`
	CreatedAt time.Time            `json:"createdAt"`
	StartedAt time.Time            `json:"startedAt,omitzero"`
	// ImageName is what people call the image: as the user wrote it, or one of its tags.
	ImageName string `json:"imageName"`
	// ImageID is the ID of the image that the root filesystem was made from; ImageRef a digest reference to it, or
	// the ID.
	ImageID  string `json:"imageID"`
	ImageRef string `json:"imageRef"`
	// LogPath is absolute, "" for no log.
	LogPath string `json:"logPath,omitempty"`
	// CgroupsPath is as the OCI spec has it.
	CgroupsPath string `json:"cgroupsPath,omitempty"`
	// StopSignal is a name as in the image's config ("SIGTERM", "RTMIN+3"); it has been checked.
	StopSignal string `json:"stopSignal,omitempty"`
	// User is who its first process runs as.
	User User `json:"user"`
	// Pid is that of its first process in the host's namespace, also after its end.
	Pid int `json:"pid,omitempty"`
	// Resources are those of the last update, nil before the first.
	Resources *Resources `json:"resources,omitempty"`
	// MountImages are the image references of the mounts of Config that are images, by index of the mount.
	MountImages map[int]string `json:"mountImages,omitempty"`
	Exit        *Exit          `json:"exit,omitempty"`
	Notes       []string       `json:"notes,omitempty"`
	Timings     Timings        `json:"timings,omitempty"`
	// Pending is why a remove could not be finished yet.
	Pending *Pending `json:"pending,omitempty"`
}

// User is a process's user.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// Exit is how a container ended.
type Exit struct {
	Code       int       `json:"code"`
	Reason     string    `json:"reason"`            // one word for programs, see CRI ContainerStatus.reason
	Message    string    `json:"message,omitempty"` // a sentence for people
	FinishedAt time.Time `json:"finishedAt"`
}

// Pending is work that could not be done yet. It is retried with a growing pause.
type Pending struct {
	Err   string    `json:"err"`
	Since time.Time `json:"since"`
	Tries int       `json:"tries"`
}

// Resources is a CRI message in a record.
type Resources struct{ CRI *cri.LinuxContainerResources }

// MarshalJSON writes the message in its binary form, which keeps fields that a newer version knows.
func (r Resources) MarshalJSON() ([]byte, error) {
	b, err := proto.Marshal(r.CRI)
	if err != nil {
		return nil, err
	}
	return json.Marshal(b)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (r *Resources) UnmarshalJSON(data []byte) error {
	var b []byte
	if err := json.Unmarshal(data, &b); err != nil {
		return err
	}
	r.CRI = new(cri.LinuxContainerResources)
	return proto.Unmarshal(b, r.CRI)
}

// envelope is a record as it is on disk: JSON that people can read, and the CRI message in its binary form.
type envelope[T any] struct {
	Record T      `json:"record"`
	Config []byte `json:"config"`
}

func encode[T any](record T, config proto.Message) ([]byte, error) {
	b, err := proto.Marshal(config)
	if err != nil {
		return nil, err
	}
	return json.Marshal(envelope[T]{record, b})
}

func decode[T any](data []byte, record T, config proto.Message) error {
	e := envelope[T]{Record: record}
	if err := json.Unmarshal(data, &e); err != nil {
		return err
	}
	return proto.Unmarshal(e.Config, config)
}

func decodePod(data []byte) (*Pod, error) {
	p := &Pod{Config: new(cri.PodSandboxConfig)}
	return p, decode(data, p, p.Config)
}

func decodeContainer(data []byte) (*Container, error) {
	c := &Container{Config: new(cri.ContainerConfig)}
	return c, decode(data, c, c.Config)
}
