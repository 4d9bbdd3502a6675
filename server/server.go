// Package server is the CRI edge: one file per RPC (noun_verb.go), each parsing its request once, running the steps
// of a main path and answering.
//
// Locks: a pod's or container's turn serialises what is done to it, and may be held for long; its mu guards writes of
// its record and is held over one write to disk. Order: a pod's turn, its containers' turns, a mu. Readers take none
// of them: they read the last record that was written, which nobody changes.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/cni"
	"github.com/orlop/orlop/server/stats"
	"github.com/orlop/orlop/server/store"
	"github.com/orlop/orlop/server/stream"
	"github.com/orlop/orlop/storage"
)

// Config is what the server is told by the configuration file.
type Config struct {
	// Root holds what outlives a reboot, RunRoot what does not; both belong to this server alone.
	Root, RunRoot string
	// StorageRoot is where the file system of the containers' writable layers is.
	StorageRoot string
	// InitPath is the orlop-conmon binary, linked statically: the init of pods that share their PID namespace.
	InitPath string
	// Version of the program, for the Version RPC.
	Version string
	// CgroupParent is the cgroup of pods that name none: "/orlop" or "orlop.slice".
	CgroupParent string
	// SystemdCgroup: cgroups are made by systemd.
	SystemdCgroup bool
	// Container is what containers get unless their request or image says otherwise.
	Container ContainerDefaults
	// Stream says where Exec, Attach and PortForward are served.
	Stream stream.Config
	// Shown is the whole configuration as JSON, for the verbose status.
	Shown []byte
}

// ContainerDefaults are what containers get unless their request or image says otherwise.
type ContainerDefaults struct {
	Capabilities []string // "CAP_CHOWN", …
	Env          []string // "NAME=value"
	Ulimits      []rspec.POSIXRlimit
	Sysctls      map[string]string
	PidsLimit    int64 // 0: none of its own
	ShmBytes     int64 // of a pod's /dev/shm
	// SeccompProfile is the content (JSON) of what RuntimeDefault means, nil for the built-in profile.
	SeccompProfile []byte
	// AppArmorProfile is what RuntimeDefault means, "" for unconfined.
	AppArmorProfile string
}

// Deps are the parts that the server works with. Each is safe for concurrent use, and closed by whoever opened it.
type Deps struct {
	Host    spec.Host
	Cgroups Cgroups
	Storage Storage
	Images  Images
	Network Network
	// Connect connects to the monitor as [conmon.Connect] does.
	Connect func(ctx context.Context, events func(conmon.Event), resync func()) (Monitor, error)
	// Namespaces, Lookup and Streams may be nil for those of this machine.
	Namespaces Namespaces
	Lookup     Lookup
	Streams    func(stream.Monitor, stream.Subjects) (Streams, error)
}

// Cgroups is [cgroup.Host].
type Cgroups interface {
	ContainerPath(parent, id string) (string, error)
	Dir(cgroupsPath string) (string, error)
	podCgroups
	Read(dir string) (*cgroup.Stats, error)
}

// podCgroups makes and removes those of pods.
type podCgroups interface {
	Missing(parent string) ([]string, error)
	EnsurePod(parent string) (made []string, err error)
	Remove(made []string) error
}

// Storage is what the main path needs of [storage.Store].
type Storage interface {
	CreateRootfs(ctx context.Context, o storage.RootfsOptions) (path string, err error)
	DeleteRootfs(ctx context.Context, id string) error
	ListRootfs() ([]string, error)
	volumes
	RootfsUsage(ctx context.Context, id string) (storage.Usage, error)
}

// volumes are images that are mounted in containers.
type volumes interface {
	MountImage(ctx context.Context, imageID, holder, mountLabel string) (path string, err error)
	UnmountImage(ctx context.Context, holder string) error
}

// Images is what the main path needs of [image.Service].
type Images interface {
	Resolve(name string) (*image.Image, error)
}

// Network is [cni.Network].
type Network interface {
	Add(ctx context.Context, p cni.Pod) (cni.Result, error)
	Del(ctx context.Context, p cni.Pod) error
	Attached() ([]string, error)
	Status() error
	SetPodCIDR(cidr string) error
}

// Namespaces is package ns.
type Namespaces interface {
	Create(ctx context.Context, o ns.Options) error
	Delete(ctx context.Context, dir string) error
	// Alive tells whether a namespace is pinned at path. After a reboot a file may be there, and nothing on it.
	Alive(path string) bool
}

// Monitor is what the main path needs of [conmon.Client].
type Monitor interface {
	Create(ctx context.Context, r conmon.CreateRequest) (conmon.Created, error)
	Start(ctx context.Context, id string) (startedAt time.Time, err error)
	Signal(ctx context.Context, id string, signal int) error
	Delete(ctx context.Context, id string) error
	List(ctx context.Context) ([]conmon.Container, error)
	tuner
	stream.Monitor
}

// tuner changes what runs.
type tuner interface {
	Update(ctx context.Context, id string, r *rspec.LinuxResources) error
	ReopenLog(ctx context.Context, id string) error
}

// Server implements the CRI RuntimeService.
type Server struct {
	cri.UnimplementedRuntimeServiceServer

	cfg     Config
	Deps    // all set
	log     *slog.Logger
	monitor Monitor
	streams Streams
	records *store.Store
	meter   *stats.Meter

	pods       *table[store.PodID, *pod]
	containers *table[store.ContainerID, *container]
	events     events
	userNS     bool          // the kernel has user namespaces
	taken      chan struct{} // closed when what the last daemon left has been taken over

	initOnce sync.Once
	initErr  error

	// cgroupMu is held while cgroups of pods are made or removed: a parent that is empty for the one pod may be what
	// another is about to use.
	cgroupMu sync.Mutex

	ctx    context.Context // the daemon's and not a request's: work that callers wait for runs on it
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool // no more work is begun
	work   sync.WaitGroup
}

// New opens the records, takes over what lives, and records what has died. When it returns, the server can serve.
// The context bounds New itself.
func New(ctx context.Context, cfg Config, deps Deps, log *slog.Logger) (*Server, error) {
	records, err := store.Open(filepath.Join(cfg.Root, "records.db"))
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, Deps: deps, log: log, records: records,
		pods: newTable[store.PodID, *pod](), containers: newTable[store.ContainerID, *container](),
		taken: make(chan struct{}), meter: stats.New(deps.Cgroups, deps.Storage, cfg.StorageRoot),
	}
	_, err = os.Stat("/proc/self/ns/user")
	s.userNS = err == nil
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if s.Namespaces == nil {
		s.Namespaces = kernelNamespaces{}
	}
	if s.Lookup == nil {
		s.Lookup = machine{}
	}
	if s.Streams == nil {
		s.Streams = s.serveStreams
	}
	if err := s.takeOver(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start: %w", err), s.Close())
	}
	if s.streams, err = s.Streams(s.monitor, s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) serveStreams(m stream.Monitor, subjects stream.Subjects) (Streams, error) {
	return stream.New(s.cfg.Stream, m, subjects, s.log)
}

// Close cancels what is under way, waits until it has been undone, and closes the records. Containers go on.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.events.close()
	var err error
	if s.streams != nil {
		err = s.streams.Close()
	}
	s.work.Wait()
	return errors.Join(err, s.records.Close())
}

// begin runs f on the daemon's context, and makes Close wait for it. What is begun after Close finds its context
// cancelled and the records closed, so it ends without an effect.
func (s *Server) begin(f func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		go f(s.ctx)
		return
	}
	s.work.Go(func() { f(s.ctx) })
}

type kernelNamespaces struct{}

func (kernelNamespaces) Create(ctx context.Context, o ns.Options) error { return ns.Create(ctx, o) }
func (kernelNamespaces) Delete(ctx context.Context, dir string) error   { return ns.Delete(ctx, dir) }

func (kernelNamespaces) Alive(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
