package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/apimachinery/pkg/types"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrarTime is how long a registrar, which only tells what it knows, may take.
const registrarTime = 10 * time.Second

// register asks who is behind a socket, makes its driver known, and tells it so, or why not.
func (m *Manager) register(ctx context.Context, socket string) (*driver, error) {
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	registrar := registration.NewRegistrationClient(conn)
	limited, cancel := context.WithTimeout(ctx, registrarTime)
	defer cancel()
	info, err := registrar.GetInfo(limited, &registration.InfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("GetInfo: %w", err)
	}
	d, err := m.admit(ctx, socket, info)
	verdict := &registration.RegistrationStatus{PluginRegistered: err == nil}
	if err != nil {
		verdict.Error = err.Error()
	}
	limited, cancel = context.WithTimeout(ctx, registrarTime)
	defer cancel()
	_, tellErr := registrar.NotifyRegistrationStatus(limited, verdict)
	if tellErr != nil && err == nil && ctx.Err() == nil { // else the caller knows what becomes of it
		m.deregister(context.WithoutCancel(ctx), d)
		err = fmt.Errorf("NotifyRegistrationStatus: %w", tellErr)
	}
	return d, err
}

// admit puts a driver on the list of this node and of the cluster. While a driver is updated, the new one may come before
// the old one has gone: then the new one is used.
func (m *Manager) admit(ctx context.Context, socket string, info *registration.PluginInfo) (*driver, error) {
	if err := check(info); err != nil {
		return nil, err
	}
	d := &driver{name: info.Name, endpoint: info.Endpoint, callTime: m.cfg.CallTime}
	if d.endpoint == "" {
		d.endpoint = socket
	}
	d.endpoint = strings.TrimPrefix(d.endpoint, "unix://")
	node, err := d.info(ctx)
	if err != nil {
		return nil, err
	}
	d.node = node
	m.nodeMu.Lock()
	defer m.nodeMu.Unlock()
	if m.cfg.Client != nil {
		if err := m.install(ctx, d); err != nil {
			return nil, fmt.Errorf("driver %s: %w", d.name, err)
		}
	}
	m.log.Info("driver registered", "driver", d.name, "endpoint", d.endpoint, "node_id", d.node.NodeId)
	for _, uid := range m.add(d) {
		m.cfg.Wake(uid)
	}
	return d, nil
}

// info asks the driver what this node is to it.
func (d *driver) info(ctx context.Context) (is *csi.NodeGetInfoResponse, err error) {
	err = d.call(ctx, "NodeGetInfo", func(ctx context.Context, c csi.NodeClient) (err error) {
		is, err = c.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
		return err
	})
	if err == nil && is.GetNodeId() == "" {
		err = fmt.Errorf("driver %s: NodeGetInfo: it has no node_id", d.name)
	}
	return is, err
}

// keepLimit asks the driver how many volumes this node can have, as often as its CSIDriver's nodeAllocatableUpdatePeriodSeconds
// says (KEP-4876), until ctx ends.
func (m *Manager) keepLimit(ctx context.Context, d *driver) {
	for {
		p, err := m.policy(ctx, d.name)
		never := err != nil || p.limitPeriod == 0 || m.cfg.Client == nil
		wait := p.limitPeriod
		if never { // the object may change
			wait = time.Minute
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if never {
			continue
		}
		if err := m.readLimit(ctx, d); err != nil && ctx.Err() == nil {
			m.log.Warn("limit of volumes not read", "driver", d.name, "err", err)
		}
	}
}

func (m *Manager) readLimit(ctx context.Context, d *driver) error {
	is, err := d.info(ctx)
	if err != nil {
		return err
	}
	m.nodeMu.Lock()
	defer m.nodeMu.Unlock()
	if current, err := m.driver(d.name); err != nil || current != d {
		return nil // another one tells
	}
	d.node = is
	return m.install(ctx, d)
}

// check refuses what is no driver that can be worked with.
func check(info *registration.PluginInfo) error {
	if info.Type != registration.CSIPlugin {
		return fmt.Errorf("plugin %s: plugins of type %s are not supported here", info.Name, info.Type)
	}
	if err := checkName("driver", info.Name); err != nil {
		return err
	}
	if !slices.ContainsFunc(info.SupportedVersions, func(v string) bool {
		major, _, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
		return major == "1"
	}) {
		return fmt.Errorf("driver %s: it speaks the versions %q of CSI, of which none is 1.x", info.Name, info.SupportedVersions)
	}
	return nil
}

// checkName refuses what can't be the name of a directory.
func checkName(of, name string) error {
	if name == "" || strings.Contains(name, "/") || strings.HasPrefix(name, ".") {
		return fmt.Errorf("name of %s %q: must not be empty, begin with a dot or have a slash", of, name)
	}
	return nil
}

// add puts a driver on the list, and returns the pods that wait for it.
func (m *Manager) add(d *driver) []types.UID {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drivers[d.name] = append(m.drivers[d.name], d)
	var uids []types.UID
	for uid := range m.waiting[d.name] {
		uids = append(uids, uid)
	}
	delete(m.waiting, d.name)
	return uids
}

// awaits notes that a pod waits for a driver, if that is what is wrong.
func (m *Manager) awaits(uid types.UID, err error) {
	var absent *AbsentError
	if !errors.As(err, &absent) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting[absent.Driver] == nil {
		m.waiting[absent.Driver] = map[types.UID]bool{}
	}
	m.waiting[absent.Driver][uid] = true
}

// deregister takes a driver off the list. Another one of its name, if there is one, is used from then on.
func (m *Manager) deregister(ctx context.Context, d *driver) {
	m.nodeMu.Lock()
	defer m.nodeMu.Unlock()
	m.mu.Lock()
	left := slices.DeleteFunc(m.drivers[d.name], func(o *driver) bool { return o == d })
	m.drivers[d.name] = left
	m.mu.Unlock()
	m.log.Info("driver is gone", "driver", d.name, "endpoint", d.endpoint, "others", len(left))
	if m.cfg.Client == nil {
		return
	}
	tell := func() error { return m.uninstall(ctx, d.name) }
	if len(left) > 0 {
		tell = func() error { return m.install(ctx, left[len(left)-1]) }
	}
	if err := tell(); err != nil {
		m.log.Warn("the cluster's list of drivers is not right", "driver", d.name, "err", err)
	}
}
