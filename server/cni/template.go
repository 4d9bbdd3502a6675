package cni

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/containernetworking/cni/libcni"
)

// generated is the file that SetPodCIDR writes in the conf directory.
const generated = "10-orlop.conflist"

// templateData is what a template is given, as containerd's conf_template is.
type templateData struct {
	PodCIDR       string   // the first
	PodCIDRRanges []string // all
	Routes        []string // a default route for each family
}

// SetPodCIDR is UpdateRuntimeConfig's pod CIDR ("10.0.0.0/24" or "10.0.0.0/24,fd00::/64"). It makes a network
// configuration from the template, if there is one.
func (n *Network) SetPodCIDR(cidr string) error {
	data, err := newTemplateData(cidr)
	if err != nil {
		return err
	}
	if n.cfg.ConfTemplate == "" {
		return nil // the network is somebody else's
	}
	t, err := template.ParseFiles(n.cfg.ConfTemplate)
	if err != nil {
		return fmt.Errorf("cni.conf_template: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return fmt.Errorf("cni.conf_template: %w", err)
	}
	if _, err := libcni.NetworkConfFromBytes(out.Bytes()); err != nil {
		return fmt.Errorf("cni.conf_template %s makes no network configuration: %w", n.cfg.ConfTemplate, err)
	}
	path := filepath.Join(n.cfg.ConfDir, generated)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, out.Bytes()) {
		return nil // the kubelet says it again after each of its starts
	}
	if err := os.WriteFile(path+".new", out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func newTemplateData(cidr string) (templateData, error) {
	var data templateData
	seen := map[bool]bool{}
	for text := range strings.SplitSeq(cidr, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return data, fmt.Errorf("%w: network_config.pod_cidr %q: %w", ErrInvalid, cidr, err)
		}
		data.PodCIDRRanges = append(data.PodCIDRRanges, prefix.Masked().String())
		is4 := prefix.Addr().Is4()
		if !seen[is4] {
			seen[is4] = true
			data.Routes = append(data.Routes, map[bool]string{true: "0.0.0.0/0", false: "::/0"}[is4])
		}
	}
	data.PodCIDR = data.PodCIDRRanges[0]
	return data, nil
}
