package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/fsnotify/fsnotify"
)

const (
	// settleTime is how long after a change the conf directory is read: files are written in parts.
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
	n.files = w
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
	settling := false
	changed := func() {
		if !settling { // counted from the first change: who writes on and on must not put it off for ever
			settling = true
			timer.Reset(settleTime)
		}
	}
	settled := func() {
		settling = false
		timer.Stop()
		if n.current.Load().err != nil { // a node whose network works has no timer
			timer.Reset(retryTime)
		}
	}
	settled()
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
			changed()
		case err := <-w.Errors:
			n.log.Warn("network configuration is watched with gaps", "dir", n.cfg.ConfDir, "err", err)
			changed()
		case <-n.doubt:
			changed()
		case <-timer.C:
			n.reload()
			settled()
		}
	}
}

// doubtNetwork has it found out whether the network still works. A plugin that became unable to shows in an ADD first,
// so that nobody need ask it time and again.
func (n *Network) doubtNetwork() {
	select {
	case n.doubt <- struct{}{}:
	default: // it will be looked at anyway
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
	if now.err == nil && !n.collected {
		n.collected = true
		n.collect(ctx, now.list)
	}
	n.current.Store(now)
	switch {
	case now.err != nil && (before == nil || before.err == nil || before.err.Error() != now.err.Error()):
		n.log.Warn("network is not ready", "err", now.err)
	case now.err == nil && (before == nil || before.err != nil || string(before.list.Bytes) != string(now.list.Bytes)):
		n.log.Info("network is ready", "network", now.list.Name)
	}
}

// collect lets plugins free what they hold for pods that nobody knows any more (GC, CNI 1.1). It is done once, before
// the first pod is connected: while an ADD runs, its pod is not among those that are known.
func (n *Network) collect(ctx context.Context, list *libcni.NetworkConfigList) {
	attachments, err := n.attachments("")
	valid := make([]types.GCAttachment, 0, len(attachments))
	for _, a := range attachments {
		valid = append(valid, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	if err == nil {
		err = n.plugins.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
	}
	if err != nil {
		n.log.Warn("network: plugins may hold what no pod uses", "network", list.Name, "err", err)
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
		list, err := n.readConf(file)
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

func (n *Network) readConf(file string) (*libcni.NetworkConfigList, error) {
	read := readSingle
	if filepath.Ext(file) == ".conflist" {
		read = libcni.NetworkConfFromFile
	}
	list, err := read(file)
	if err == nil {
		err = n.checkList(list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

func (n *Network) checkList(list *libcni.NetworkConfigList) error {
	if len(list.Plugins) == 0 {
		return errors.New("the list of plugins is empty")
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil { // a typed error: nil would be none
		return err
	}
	return n.inline(list)
}

// readSingle reads a file of one plugin: a form that is older than lists, and still in use.
func readSingle(file string) (*libcni.NetworkConfigList, error) {
	conf, err := libcni.ConfFromFile(file) //nolint:staticcheck // deprecated with the form
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(conf) //nolint:staticcheck // see above
}

// inline puts the plugins that the library found in files of their own, in a directory with the network's name (CNI
// 1.1), into the list's text: from that text alone DEL is run later. It also has that directory watched.
func (n *Network) inline(list *libcni.NetworkConfigList) error {
	if list.LoadOnlyInlinedPlugins {
		return nil
	}
	own := filepath.Join(n.cfg.ConfDir, list.Name)
	if err := n.files.Add(own); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("watch %s: %w", own, err)
	}
	var text map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &text); err != nil {
		return err
	}
	plugins := make([]json.RawMessage, len(list.Plugins))
	for i, plugin := range list.Plugins {
		plugins[i] = plugin.Bytes
	}
	var err error
	if text["plugins"], err = json.Marshal(plugins); err != nil {
		return err
	}
	text["loadOnlyInlinedPlugins"] = json.RawMessage("true")
	list.Bytes, err = json.Marshal(text)
	return err
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
