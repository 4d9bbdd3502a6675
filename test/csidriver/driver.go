// Package csidriver is a small CSI driver for tests, which does what it says: volumes are directories, staging and publishing
// are bind mounts, devices are device nodes. It serves in the process of its test, keeps a log of what it was asked for, and
// fails or hangs where a test wants it to.
package csidriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Options are what a Driver is like.
type Options struct {
	Name     string
	Suffix   string // of the socket by which it registers, beside another driver of this name
	Registry string // the directory plugins_registry of the kubelet
	Dir      string // of the driver's own: its socket, and the volumes
	Able     []csi.NodeServiceCapability_RPC_Type
	Topology map[string]string
	Max      int64 // volumes on the node; 0 for no limit; see SetMax
	// Fault may fail a call, by its method's name, before or after it had its effect, or wait; may be nil.
	Fault func(ctx context.Context, method string, after bool) error
}

// Call is one that a Driver has had.
type Call struct {
	Method  string
	Request proto.Message
}

// Driver is one that runs.
type Driver struct {
	csi.UnimplementedNodeServer
	csi.UnimplementedIdentityServer
	registration.UnimplementedRegistrationServer
	Options

	mu       sync.Mutex
	servers  []*grpc.Server
	calls    []Call
	verdicts []*registration.RegistrationStatus
	usage    map[string]int64 // of volumes that have grown
}

// NodeID is that of this node for all drivers.
const NodeID = "node-of-the-test"

// New makes a driver that does not run yet.
func New(o Options) *Driver { return &Driver{Options: o, usage: map[string]int64{}} }

// Socket is where the driver itself is reached.
func (d *Driver) Socket() string { return filepath.Join(d.Dir, "csi.sock") }

// RegistrationSocket is where it is found.
func (d *Driver) RegistrationSocket() string {
	return filepath.Join(d.Registry, d.Name+d.Suffix+"-reg.sock")
}

// Start serves, and registers.
func (d *Driver) Start() error {
	if err := d.StartOnly(); err != nil {
		return err
	}
	return d.serve(d.RegistrationSocket(), func(s *grpc.Server) { registration.RegisterRegistrationServer(s, d) })
}

// StartOnly serves as a driver that has registered before.
func (d *Driver) StartOnly() error {
	return d.serve(d.Socket(), func(s *grpc.Server) {
		csi.RegisterNodeServer(s, d)
		csi.RegisterIdentityServer(s, d)
	})
}

func (d *Driver) serve(socket string, register func(s *grpc.Server)) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(d.intercept))
	register(s)
	d.mu.Lock()
	d.servers = append(d.servers, s)
	d.mu.Unlock()
	go func() { _ = s.Serve(l) }() // it ends with Stop
	return nil
}

// Stop ends the driver as its pod's end does: its sockets go. Volumes stay as they are.
func (d *Driver) Stop() {
	d.mu.Lock()
	servers := d.servers
	d.servers = nil
	d.mu.Unlock()
	for _, s := range servers {
		s.Stop()
	}
}

// intercept keeps the log, and makes the faults.
func (d *Driver) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	method := filepath.Base(info.FullMethod)
	d.mu.Lock()
	d.calls = append(d.calls, Call{method, req.(proto.Message)})
	d.mu.Unlock()
	if d.Fault != nil {
		if err := d.Fault(ctx, method, false); err != nil {
			return nil, err
		}
	}
	reply, err := handle(ctx, req)
	if err == nil && d.Fault != nil {
		err = d.Fault(ctx, method, true)
	}
	return reply, err
}

// SetMax changes the limit while the driver runs.
func (d *Driver) SetMax(volumes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Max = volumes
}

// Calls are those of a method so far; all if it is "".
func (d *Driver) Calls(method string) []Call {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Call
	for _, c := range d.calls {
		if method == "" || c.Method == method {
			out = append(out, c)
		}
	}
	return out
}

// Order are the methods of all calls that change something, in their order.
func (d *Driver) Order() []string {
	var out []string
	for _, c := range d.Calls("") {
		switch c.Method {
		case "NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume", "NodeExpandVolume":
			out = append(out, c.Method)
		}
	}
	return out
}

// Forget empties the log.
func (d *Driver) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = nil
}

// Verdicts are what the kubelet said of its registrations.
func (d *Driver) Verdicts() []*registration.RegistrationStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.verdicts)
}

// Volume is where the files of a volume are.
func (d *Driver) Volume(handle string) string { return filepath.Join(d.Dir, "volumes", handle) }

// GetInfo is the registrar's.
func (d *Driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: d.Name, Endpoint: d.Socket(), SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus is the registrar's.
func (d *Driver) NotifyRegistrationStatus(_ context.Context, r *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.verdicts = append(d.verdicts, r)
	return &registration.RegistrationStatusResponse{}, nil
}

// NodeGetInfo tells the node's ID, its topology and its limit.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &csi.NodeGetInfoResponse{NodeId: NodeID, MaxVolumesPerNode: d.Max, AccessibleTopology: &csi.Topology{Segments: d.Topology}}, nil
}

// NodeGetCapabilities tells what the options say.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	out := &csi.NodeGetCapabilitiesResponse{}
	for _, what := range d.Able {
		out.Capabilities = append(out.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: what}},
		})
	}
	return out, nil
}

// NodeStageVolume mounts the volume's directory at the staging path; of a device it only makes the volume.
func (d *Driver) NodeStageVolume(_ context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if r.VolumeId == "refused" {
		return nil, status.Error(codes.InvalidArgument, "this volume is refused")
	}
	if err := os.MkdirAll(d.Volume(r.VolumeId), 0o777); err != nil {
		return nil, err
	}
	if r.VolumeCapability.GetBlock() != nil {
		return &csi.NodeStageVolumeResponse{}, nil
	}
	return &csi.NodeStageVolumeResponse{}, bind(d.Volume(r.VolumeId), r.StagingTargetPath, false)
}

// NodeUnstageVolume undoes it.
func (d *Driver) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	return &csi.NodeUnstageVolumeResponse{}, unbind(r.StagingTargetPath)
}

// NodePublishVolume mounts what is staged, or the volume's directory, at the target; of a device it makes the node.
func (d *Driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if r.VolumeCapability.GetBlock() != nil {
		err := unix.Mknod(r.TargetPath, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250))) // a loop device that nobody has
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		return &csi.NodePublishVolumeResponse{}, err
	}
	from := r.StagingTargetPath
	if slices.Contains(d.Able, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME) && from != "" {
		if mounted, err := mountinfo.Mounted(from); err != nil || !mounted {
			return nil, status.Errorf(codes.FailedPrecondition, "%s is not staged (%v)", from, err)
		}
	} else {
		from = d.Volume(r.VolumeId)
		if err := os.MkdirAll(from, 0o777); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(r.TargetPath, 0o750); err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, bind(from, r.TargetPath, r.Readonly)
}

// NodeUnpublishVolume undoes it, and removes the target as CSI demands.
func (d *Driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := unbind(r.TargetPath); err != nil {
		return nil, err
	}
	if err := os.Remove(r.TargetPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats tells numbers that no file system would.
func (d *Driver) NodeGetVolumeStats(_ context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if _, err := os.Stat(r.VolumePath); err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: 1000, Available: 600, Used: 400}, {Unit: csi.VolumeUsage_INODES, Total: 100, Available: 99, Used: 1},
	}}, nil
}

// NodeExpandVolume notes the new size.
func (d *Driver) NodeExpandVolume(_ context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.usage[r.VolumeId] = r.CapacityRange.RequiredBytes
	return &csi.NodeExpandVolumeResponse{CapacityBytes: r.CapacityRange.RequiredBytes}, nil
}

// Size is what a volume has grown to; 0 if it has not.
func (d *Driver) Size(handle string) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.usage[handle]
}

func bind(from, to string, readOnly bool) error {
	if mounted, err := mountinfo.Mounted(to); err != nil || mounted {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	if readOnly {
		return unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	return nil
}

func unbind(path string) error {
	mounted, err := mountinfo.Mounted(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && !mounted) {
		return nil
	}
	return unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
}
