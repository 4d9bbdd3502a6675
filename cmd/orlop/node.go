package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/internal/config"
	"github.com/orlop/orlop/oci/cgroup"
	"github.com/orlop/orlop/server"
	"github.com/orlop/orlop/server/cni"
	"github.com/orlop/orlop/server/host"
	"github.com/orlop/orlop/storage"
)

// node is all the parts of a daemon.
type node struct {
	storage *storage.Store
	images  *image.Service
	network *cni.Network
	monitor *conmon.Client // the server's connection
	server  *server.Server

	// cancelWork ends what the server has under way and frees those who wait for it, and closes the server.
	cancelWork func() error
}

// openNode opens the parts. When it returns, what the last daemon left has been taken over.
func openNode(ctx context.Context, c config.Config, log *slog.Logger) (_ *node, err error) {
	if err := setSELinux(c.Container.SELinux); err != nil {
		return nil, err
	}
	monitor, err := monitorPath(c.Monitor.Path)
	if err != nil {
		return nil, err
	}
	cfg, err := serverConfig(c, monitor)
	if err != nil {
		return nil, err
	}
	n := new(node)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	deps := server.Deps{
		Connect: func(ctx context.Context, events func(conmon.Event), resync func()) (server.Monitor, error) {
			var err error
			n.monitor, err = conmon.Connect(ctx, conmonConfig(c, monitor), events, resync)
			return n.monitor, err
		},
	}
	if err := n.openParts(c, log, cfg.SystemdCgroup, &deps); err != nil {
		return nil, err
	}
	if n.server, err = server.New(ctx, cfg, deps, log); err != nil {
		return nil, err
	}
	n.upgradeMonitor(ctx, log)
	n.cancelWork = sync.OnceValue(n.server.Close)
	return n, nil
}

// upgradeMonitor has a monitor that an earlier version of the daemon started go on as the program that is installed now.
func (n *node) upgradeMonitor(ctx context.Context, log *slog.Logger) {
	switch done, err := n.monitor.Upgrade(ctx); {
	case err != nil:
		log.Warn("monitor is not upgraded, and goes on as it is", "err", err)
	case done:
		log.Info("monitor upgraded")
	}
}

// openParts opens what the server works with.
func (n *node) openParts(c config.Config, log *slog.Logger, systemdCgroup bool, deps *server.Deps) error {
	cgroups, err := cgroup.Detect(systemdCgroup)
	if err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	deps.Cgroups = cgroups
	if deps.Host, err = host.Detect(cgroups); err != nil {
		return fmt.Errorf("host: %w", err)
	}
	if n.storage, err = storage.Open(storageConfig(c, log)); err != nil {
		return err
	}
	deps.Storage = n.storage
	if n.images, err = image.Open(imageConfig(c, log), n.storage); err != nil {
		return err
	}
	deps.Images = n.images
	if n.network, err = cni.Open(cniConfig(c), log); err != nil {
		return err
	}
	deps.Network = n.network
	return nil
}

// Close closes what is open. Containers go on.
func (n *node) Close() error {
	var errs []error
	if n.cancelWork != nil {
		errs = append(errs, n.cancelWork())
	}
	if n.monitor != nil {
		errs = append(errs, n.monitor.Close())
	}
	if n.network != nil {
		errs = append(errs, n.network.Close())
	}
	if n.images != nil {
		n.images.Close() // pulls end before their store
	}
	if n.storage != nil {
		errs = append(errs, n.storage.Close())
	}
	return errors.Join(errs...)
}
