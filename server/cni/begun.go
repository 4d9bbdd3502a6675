package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
)

// begun remembers which ADDs were begun, and with which configuration, until libcni has the result in its cache or all
// is undone. Without it, what plugins did for an ADD that a crash of ours cut short could be undone only as long as the
// conf directory stays as it was. It is not synced: a crash of the machine takes the namespace and its interfaces with
// it, and DEL of what is not on record is then run with the configuration of the day.
type begun struct{ dir string }

func (b begun) path(pod string) string { return filepath.Join(b.dir, filepath.Base(pod)) }

func (b begun) add(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	data, err := json.Marshal(libcni.NetworkAttachment{
		ContainerID: rt.ContainerID, Network: list.Name, IfName: rt.IfName, Config: list.Bytes, NetNS: rt.NetNS,
		CniArgs: rt.Args, CapabilityArgs: rt.CapabilityArgs,
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(b.path(rt.ContainerID), data, 0o600)
}

// get returns nil if no ADD of the pod was begun. A file that was cut short is of an ADD that ran no plugin yet.
func (b begun) get(pod string) *libcni.NetworkAttachment {
	data, err := os.ReadFile(b.path(pod))
	if err != nil {
		return nil
	}
	var a libcni.NetworkAttachment
	if json.Unmarshal(data, &a) != nil || a.ContainerID != pod {
		return nil
	}
	return &a
}

func (b begun) end(pod string) error {
	if err := os.Remove(b.path(pod)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (b begun) pods() ([]string, error) {
	entries, err := os.ReadDir(b.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, entry := range entries {
		ids = append(ids, entry.Name())
	}
	return ids, nil
}

// attachments are what plugins may hold something for: finished ADDs and begun ones, of one pod or of all ("").
func (n *Network) attachments(pod string) ([]*libcni.NetworkAttachment, error) {
	all, err := n.plugins.GetCachedAttachments(pod)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	ids := []string{pod}
	if pod == "" {
		if ids, err = n.begun.pods(); err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
	}
	for _, id := range ids {
		a := n.begun.get(id)
		known := func(o *libcni.NetworkAttachment) bool { return o.ContainerID == id && o.Network == a.Network }
		if a != nil && !slices.ContainsFunc(all, known) {
			all = append(all, a)
		}
	}
	return all, nil
}
