package csi

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
)

// driver is one that has registered.
type driver struct {
	name     string
	endpoint string // a socket
	callTime time.Duration
	node     *csi.NodeGetInfoResponse // as it sees this node; guarded by Manager.nodeMu

	mu   sync.Mutex
	able map[csi.NodeServiceCapability_RPC_Type]bool // nil before the driver was asked
}

// dial connects to a socket. Connections are made for one task each: a driver may be replaced by another one at its socket
// at any time, and the next task should meet that.
func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///socket",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"), // servers refuse a path as the authority
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
}

// call asks the driver for one thing. Errors name the driver and what it was asked for.
func (d *driver) call(ctx context.Context, what string, ask func(ctx context.Context, c csi.NodeClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, d.callTime)
	defer cancel()
	conn, err := dial(d.endpoint)
	if err == nil {
		err = ask(ctx, csi.NewNodeClient(conn))
		_ = conn.Close() // the answer is there
	}
	if err != nil {
		return fmt.Errorf("driver %s: %s: %w", d.name, what, err)
	}
	return nil
}

// can tells whether the driver has a capability. It is asked once: one that is replaced registers again.
func (d *driver) can(ctx context.Context, what csi.NodeServiceCapability_RPC_Type) (bool, error) {
	d.mu.Lock()
	able := d.able
	d.mu.Unlock()
	if able == nil {
		var reply *csi.NodeGetCapabilitiesResponse
		err := d.call(ctx, "NodeGetCapabilities", func(ctx context.Context, c csi.NodeClient) (err error) {
			reply, err = c.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
			return err
		})
		if err != nil {
			return false, err
		}
		able = map[csi.NodeServiceCapability_RPC_Type]bool{}
		for _, c := range reply.GetCapabilities() {
			able[c.GetRpc().GetType()] = true
		}
		d.mu.Lock()
		d.able = able
		d.mu.Unlock()
	}
	return able[what], nil
}

// refused is true for an answer after which nothing is left of what was asked for. After the others the driver may have
// done it, or be doing it still.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	}
	return true
}

// missing is true for the answer that there is no such volume.
func missing(err error) bool { return status.Code(err) == codes.NotFound }

// accessMode says as CSI does how a volume may be used. Kubelet takes the first mode of a PersistentVolume.
func (d *driver) accessMode(ctx context.Context, modes []v1.PersistentVolumeAccessMode) (*csi.VolumeCapability_AccessMode, error) {
	precise, err := d.can(ctx, csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER)
	if err != nil {
		return nil, err
	}
	mode := v1.ReadWriteOnce
	if len(modes) > 0 {
		mode = modes[0]
	}
	out := csi.VolumeCapability_AccessMode_UNKNOWN
	switch {
	case mode == v1.ReadOnlyMany:
		out = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	case mode == v1.ReadWriteMany:
		out = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	case mode == v1.ReadWriteOncePod && precise:
		out = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	case mode == v1.ReadWriteOnce && precise:
		out = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	case mode == v1.ReadWriteOnce || mode == v1.ReadWriteOncePod:
		out = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	}
	return &csi.VolumeCapability_AccessMode{Mode: out}, nil
}

// driver is one by its name, or an error that says that it is not there.
func (m *Manager) driver(name string) (*driver, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if all := m.drivers[name]; len(all) > 0 {
		return all[len(all)-1], nil
	}
	return nil, &AbsentError{name}
}

// allDrivers are those that are used.
func (m *Manager) allDrivers() []*driver {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*driver
	for _, all := range m.drivers {
		if len(all) > 0 {
			out = append(out, all[len(all)-1])
		}
	}
	return out
}

// AbsentError is a driver that has not registered, or is gone.
type AbsentError struct{ Driver string }

func (e *AbsentError) Error() string {
	return fmt.Sprintf("driver name %s not found in the list of registered CSI drivers", e.Driver)
}
