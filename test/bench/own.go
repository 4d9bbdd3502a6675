package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/orlop/orlop/test/daemon"
	"github.com/orlop/orlop/test/images"
	"github.com/orlop/orlop/test/registry"
)

// own is a daemon and a registry that were started for this run.
type own struct {
	dir      string
	daemon   *daemon.Daemon
	registry *registry.Registry
}

func startOwn(ctx context.Context, o *options) (_ *own, err error) {
	w := &own{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.dir, err = os.MkdirTemp("/var/tmp", "ob"); err != nil {
		return nil, err
	}
	if w.daemon, err = daemon.New(daemon.Options{Dir: w.dir, Subnet: 99}); err != nil {
		return nil, err
	}
	if w.registry, err = registry.Start(registry.Options{Dir: filepath.Join(w.dir, "registry")}); err != nil {
		return nil, err
	}
	if err = w.registry.WriteCA(w.daemon.CertsDir); err != nil {
		return nil, err
	}
	img, err := images.Get(ctx, "big")
	if err != nil {
		return nil, err
	}
	if _, err = w.registry.Push(img, "big", "1"); err != nil {
		return nil, err
	}
	if err = w.daemon.Start(ctx); err != nil {
		return nil, err
	}
	o.image, o.pull = w.registry.Host+"/big:1", w.registry.Host+"/big:1"
	o.endpoint = "unix://" + w.daemon.Socket()
	return w, nil
}

func (w *own) close() error {
	var all []error
	if w.daemon != nil {
		all = append(all, w.daemon.Close())
	}
	if w.registry != nil {
		all = append(all, w.registry.Close())
	}
	if w.dir != "" {
		all = append(all, os.RemoveAll(w.dir))
	}
	return errors.Join(all...)
}
