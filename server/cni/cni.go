// Package cni connects pods to networks by CNI plugins (https://www.cni.dev/docs/spec/).
package cni

import (
	"context"
	"log/slog"
	"net/netip"
)

// Config says where plugins and their configuration are.
type Config struct {
	ConfDir  string   // network configuration lists, watched live; the first by name is the default network
	BinDirs  []string // plugins
	CacheDir string   // results of ADD, kept over a reboot so that DEL can free what they hold
	// DefaultNetwork is the name of the network to use; "" for the first file of ConfDir.
	DefaultNetwork string
}

// PortMapping forwards a port of the host to the pod.
type PortMapping struct {
	HostIP        netip.Addr // invalid: all addresses
	HostPort      uint16
	ContainerPort uint16
	Protocol      string // "tcp", "udp" or "sctp"
}

// Pod is what plugins are told.
type Pod struct {
	ID, Name, Namespace, UID            string
	NetNS                               string // path of the pinned namespace; "" if it is gone (then DEL only)
	CgroupParent                        string
	PortMappings                        []PortMapping
	Annotations                         map[string]string // kubernetes.io/ingress-bandwidth and egress-bandwidth are honoured
	DNSServers, DNSSearches, DNSOptions []string
}

// Result is what ADD gave.
type Result struct {
	Network string       `json:"network"`
	IPs     []netip.Addr `json:"ips"` // the first is the pod's primary address
}

// Network is safe for concurrent use.
type Network struct{}

// Open starts watching cfg.ConfDir.
func Open(cfg Config, log *slog.Logger) (*Network, error) { panic("cni: owner fills this in") }
func (n *Network) Close() error                           { panic("todo") }

// Add connects the pod. If a plugin fails, DEL is run for what was done. A repeat for the same pod returns the first
// result.
func (n *Network) Add(ctx context.Context, p Pod) (Result, error) { panic("todo") }

// Del disconnects the pod with the configuration and result that Add used, also when NetNS is gone and after a
// restart or a reboot. It succeeds if nothing is left.
func (n *Network) Del(ctx context.Context, p Pod) error { panic("todo") }

// Attached lists the IDs of the pods that have a cached ADD, for reconciliation at start.
func (n *Network) Attached() ([]string, error) { panic("todo") }

// Status is nil if pods can be connected now; else it says what is missing. It reads memory only.
func (n *Network) Status() error { panic("todo") }

// SetPodCIDR is UpdateRuntimeConfig's pod CIDR ("10.0.0.0/24" or "10.0.0.0/24,fd00::/64").
func (n *Network) SetPodCIDR(cidr string) error { panic("todo") }
