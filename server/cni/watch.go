package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/fsnotify/fsnotify"
)

const (
	// settleTime is how long the conf directory must be quiet before it is read: files are written in parts.
	settleTime = 50 * time.Millisecond
	// retryTime is how long after a configuration could not be used it is looked at again, while it can't: a plugin may
	// have been installed meanwhile, or become able to work (STATUS), without a change in the conf directory.
	retryTime = 5 * time.Second
	// checkTime bounds the asking of plugins whether they work.
	checkTime = 10 * time.Second
)

// watch reads the conf directory, and again whenever it changes.
func (n *Network) watch() error {
	// The directory is made: it can't be watched before it is there, and whoever installs a network may come later.
	if err := os.MkdirAll(n.cfg.ConfDir, 0o755); err != nil {
		return err
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	if err := w.Add(n.cfg.ConfDir); err != nil {
		w.Close()
		return fmt.Errorf("watch %s: %w", n.cfg.ConfDir, err)
	}
	n.reload()
	n.watcher.Go(func() {
		defer w.Close()
		n.follow(w)
	})
	return nil
}

func (n *Network) follow(w *fsnotify.Watcher) {
	timer := time.NewTimer(retryTime)
	defer timer.Stop()
	rearm := func() {
		timer.Stop()
		if n.current.Load().err != nil { // a node whose network works has no timer
			timer.Reset(retryTime)
		}
	}
	rearm()
	for {
		select {
		case <-n.ctx.Done():
			return
		case event := <-w.Events:
			if event.Name == n.cfg.ConfDir { // the directory itself has gone or come
				_ = os.MkdirAll(n.cfg.ConfDir, 0o755)
				if err := w.Add(n.cfg.ConfDir); err != nil {
					n.log.Error("network configuration is not watched any more", "dir", n.cfg.ConfDir, "err", err)
				}
			}
			timer.Reset(settleTime)
		case err := <-w.Errors:
			n.log.Warn("network configuration is watched with gaps", "dir", n.cfg.ConfDir, "err", err)
			timer.Reset(settleTime)
		case <-timer.C:
			n.reload()
			rearm()
		}
	}
}

// reload makes what the directory holds the current network.
func (n *Network) reload() {
	ctx, cancel := context.WithTimeout(n.ctx, checkTime)
	defer cancel()
	before := n.current.Load()
	now := &network{}
	now.list, now.err = n.load()
	if now.err == nil {
		now.err = n.check(ctx, now.list)
	}
	n.current.Store(now)
	switch {
	case now.err != nil && (before == nil || before.err == nil || before.err.Error() != now.err.Error()):
		n.log.Warn("network is not ready", "err", now.err)
	case now.err == nil && (before == nil || before.err != nil || string(before.list.Bytes) != string(now.list.Bytes)):
		n.log.Info("network is ready", "network", now.list.Name)
	}
}

// load returns the first usable configuration by file name, or the one that has the name in the configuration.
func (n *Network) load() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(n.cfg.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var all []error
	for _, file := range files {
		list, err := readConf(file)
		switch {
		case err != nil:
			all = append(all, err)
		case n.cfg.DefaultNetwork == "" || list.Name == n.cfg.DefaultNetwork:
			return list, nil
		}
	}
	if n.cfg.DefaultNetwork != "" {
		all = append(all, fmt.Errorf("no network is named %q in %s", n.cfg.DefaultNetwork, n.cfg.ConfDir))
	} else if len(all) == 0 {
		all = append(all, fmt.Errorf("no network configuration in %s", n.cfg.ConfDir))
	}
	return nil, errors.Join(all...)
}

func readConf(file string) (*libcni.NetworkConfigList, error) {
	var list *libcni.NetworkConfigList
	var err error
	if filepath.Ext(file) == ".conflist" {
		list, err = libcni.NetworkConfFromFile(file)
	} else {
		var conf *libcni.PluginConfig
		if conf, err = libcni.ConfFromFile(file); err == nil { //nolint:staticcheck // such files are still in use
			if conf.Network.Type == "" {
				err = errors.New("no \"type\" names a plugin")
			} else {
				list, err = libcni.ConfListFromConf(conf) //nolint:staticcheck // see above
			}
		}
	}
	if err == nil && len(list.Plugins) == 0 {
		err = errors.New("the list of plugins is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

// check finds out whether all plugins are installed, speak the configuration's version, and are able to work (STATUS,
// CNI 1.1).
func (n *Network) check(ctx context.Context, list *libcni.NetworkConfigList) error {
	if _, err := n.plugins.ValidateNetworkList(ctx, list); err != nil {
		return fmt.Errorf("network %s: %w", list.Name, err)
	}
	if err := n.plugins.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("network %s: %w", list.Name, err)
	}
	return nil
}
