// Package cni connects pods to networks by CNI plugins (https://www.cni.dev/docs/spec/).
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/fsnotify/fsnotify"
)

// ErrInvalid is for requests that can't be passed to plugins; the text names the field.
var ErrInvalid = errors.New("invalid network request")

// ErrNotReady means that there is no network to connect pods to.
var ErrNotReady = errors.New("network is not ready")

// Config says where plugins and their configuration are.
type Config struct {
	ConfDir  string   // network configuration lists, watched live; the first by name is the default network
	BinDirs  []string // plugins
	CacheDir string   // results of ADD, kept over a reboot so that DEL can free what they hold
	// DefaultNetwork is the name of the network to use; "" for the first file of ConfDir.
	DefaultNetwork string
	// ConfTemplate is a file from which SetPodCIDR makes a network configuration; "" for none.
	ConfTemplate string
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

// ifName is the name of a pod's interface: Kubernetes knows no other.
const ifName = "eth0"

// Network is safe for concurrent use.
type Network struct {
	cfg     Config
	log     *slog.Logger
	plugins *libcni.CNIConfig
	begun   begun
	// turns bounds how many pods are being connected at a time: it is all processor time of short-lived processes.
	turns chan struct{}

	current atomic.Pointer[network]
	doubt   chan struct{} // an ADD failed: is the network still able to work?
	files   *fsnotify.Watcher
	// collected is touched by reload alone, which runs once at a time.
	collected bool

	ctx     context.Context
	cancel  context.CancelFunc
	watcher sync.WaitGroup
}

// network is what was last found in the conf directory: a list, or why there is none.
type network struct {
	list *libcni.NetworkConfigList
	err  error
}

// Open starts watching cfg.ConfDir.
func Open(cfg Config, log *slog.Logger) (*Network, error) {
	if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	n := &Network{
		cfg: cfg, log: log,
		plugins: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, &runner{}),
		begun:   begun{filepath.Join(cfg.CacheDir, "begun")},
		turns:   make(chan struct{}, max(4, 2*runtime.NumCPU())),
		doubt:   make(chan struct{}, 1),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.watch(); err != nil {
		n.cancel()
		return nil, fmt.Errorf("network: %w", err)
	}
	return n, nil
}

// Close stops watching. Pods stay connected.
func (n *Network) Close() error {
	n.cancel()
	n.watcher.Wait()
	return nil
}

// Status is nil if pods can be connected now; else it says what is missing. It reads memory only.
func (n *Network) Status() error { return n.current.Load().ready() }

func (n *network) ready() error {
	if n.err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, n.err)
	}
	return nil
}

// Add connects the pod. If a plugin fails, DEL is run for what was done. A repeat for the same pod returns the first
// result; after a crash amid an earlier Add, what that one did is undone first. Calls for one pod come one at a time.
func (n *Network) Add(ctx context.Context, p Pod) (Result, error) {
	if done, ok := n.earlier(p); ok {
		return done, nil
	}
	if half := n.begun.get(p.ID); half != nil {
		if err := n.Del(ctx, p); err != nil {
			return Result{}, fmt.Errorf("what an earlier try left: %w", err)
		}
	}
	now := n.current.Load()
	if err := now.ready(); err != nil {
		return Result{}, err
	}
	rt, err := p.runtimeConf()
	if err != nil {
		return Result{}, err
	}
	done, err := n.turn(ctx)
	if err != nil {
		return Result{}, err
	}
	defer done()
	result, err := n.add(ctx, now.list, rt)
	if err != nil {
		n.doubtNetwork()
		return Result{}, fmt.Errorf("network %s: %w", now.list.Name, err)
	}
	return result, nil
}

func (n *Network) add(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (Result, error) {
	if err := n.begun.add(list, rt); err != nil {
		return Result{}, err
	}
	var result Result
	raw, err := n.plugins.AddNetworkList(ctx, list, rt)
	if err == nil {
		result, err = parseResult(list.Name, raw)
	}
	if err != nil {
		if derr := n.plugins.DelNetworkList(context.WithoutCancel(ctx), list, rt); derr != nil {
			return Result{}, fmt.Errorf("%w (and what it had done is not undone: %w)", err, derr)
		}
		return Result{}, errors.Join(err, n.begun.end(rt.ContainerID))
	}
	return result, n.begun.end(rt.ContainerID)
}

// turnTime is how long a pod is counted among those that are being connected. Whoever takes longer waits for something,
// and uses no processor: a plugin that hangs for one pod must not keep others waiting.
const turnTime = 2 * time.Second

// turn waits until few enough pods are being connected. done gives the turn back.
func (n *Network) turn(ctx context.Context) (done func(), err error) {
	select {
	case n.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("network: waiting for other pods' plugins: %w", ctx.Err())
	}
	giveBack := sync.OnceFunc(func() { <-n.turns })
	timer := time.AfterFunc(turnTime, giveBack)
	return func() { timer.Stop(); giveBack() }, nil
}

// earlier returns the result of an Add of this pod that is on record.
func (n *Network) earlier(p Pod) (Result, bool) {
	attachments, err := n.plugins.GetCachedAttachments(p.ID)
	if err != nil {
		return Result{}, false
	}
	for _, a := range attachments {
		if a.NetNS != p.NetNS || a.IfName != ifName {
			continue
		}
		list := &libcni.NetworkConfigList{Name: a.Network, CNIVersion: types100.ImplementedSpecVersion}
		raw, err := n.plugins.GetNetworkListCachedResult(list, &libcni.RuntimeConf{ContainerID: p.ID, IfName: ifName})
		if err != nil || raw == nil {
			continue
		}
		if result, err := parseResult(a.Network, raw); err == nil {
			return result, true
		}
	}
	return Result{}, false
}

// parseResult checks what a plugin said: it is a program of somebody else.
func parseResult(name string, raw types.Result) (Result, error) {
	r, err := types100.NewResultFromResult(raw)
	if err != nil {
		return Result{}, fmt.Errorf("result: %w", err)
	}
	out := Result{Network: name}
	for _, ip := range r.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		addr = addr.Unmap()
		if !ok || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
			return Result{}, fmt.Errorf("result: %q is not an address for a pod", ip.Address.IP)
		}
		if !onHost(ip, r.Interfaces) {
			out.IPs = append(out.IPs, addr)
		}
	}
	if len(out.IPs) == 0 {
		return Result{}, errors.New("result: no plugin gave the pod an address")
	}
	return out, nil
}

// onHost tells whether an address is of an interface of the host's side, which names no sandbox.
func onHost(ip *types100.IPConfig, interfaces []*types100.Interface) bool {
	i := ip.Interface
	return i != nil && *i >= 0 && *i < len(interfaces) && interfaces[*i].Sandbox == ""
}

// Del disconnects the pod with the configuration and result that Add used, also when NetNS is gone and after a
// restart or a reboot. It succeeds if nothing is left.
func (n *Network) Del(ctx context.Context, p Pod) error {
	attachments, err := n.attachments(p.ID)
	if err != nil {
		return err
	}
	done, err := n.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	var all []error
	if len(attachments) == 0 {
		all = append(all, n.delUnknown(ctx, p))
	}
	for _, a := range attachments {
		if err := n.delAttachment(ctx, a, p.NetNS); err != nil {
			all = append(all, fmt.Errorf("network %s: %w", a.Network, err))
		}
	}
	if err := errors.Join(all...); err != nil {
		return err
	}
	return n.begun.end(p.ID)
}

func (n *Network) delAttachment(ctx context.Context, a *libcni.NetworkAttachment, netns string) error {
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return fmt.Errorf("its configuration of then: %w", err)
	}
	return n.plugins.DelNetworkList(ctx, list, &libcni.RuntimeConf{
		ContainerID: a.ContainerID, NetNS: netns, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs,
	})
}

// delUnknown is for a pod whose Add left no record: it was never called, or was killed half-way, and the plugins may
// hold something. DEL of what was never added is no error (CNI specification, section 2).
func (n *Network) delUnknown(ctx context.Context, p Pod) error {
	now := n.current.Load()
	if now.err != nil {
		return nil
	}
	rt, err := p.runtimeConf()
	if err != nil {
		return nil // an Add of it was refused for the same reason
	}
	if err := n.plugins.DelNetworkList(ctx, now.list, rt); err != nil {
		return fmt.Errorf("network %s: %w", now.list.Name, err)
	}
	return nil
}

// Attached lists the IDs of the pods that plugins may hold something for, for reconciliation at start.
func (n *Network) Attached() ([]string, error) {
	attachments, err := n.attachments("")
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, a := range attachments {
		ids = append(ids, a.ContainerID)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
