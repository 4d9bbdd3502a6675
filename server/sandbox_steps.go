package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/oci/ns"
	"github.com/orlop/orlop/oci/spec"
	"github.com/orlop/orlop/server/cni"
	"github.com/orlop/orlop/server/label"
	"github.com/orlop/orlop/server/store"
)

// podSteps is the main path of a pod. Forwards it makes one; backwards it serves failure, Stop, Remove and restart.
func (s *Server) podSteps() []step[*pod] { return slices.Concat(s.keptSteps(), s.stoppedSteps()) }

// keptSteps are undone by Remove: a stopped pod still has them.
func (s *Server) keptSteps() []step[*pod] {
	return []step[*pod]{
		{"record", s.recordPod, s.forgetPod}, // on disk before anything exists in the kernel
		{"cgroup", s.makePodCgroup, s.removePodCgroup},
		{"dir", s.makePodDir, s.removePodDir},
	}
}

// stoppedSteps are undone by Stop.
func (s *Server) stoppedSteps() []step[*pod] {
	return []step[*pod]{
		{"namespaces", s.makeNamespaces, s.removeNamespaces},
		{"files", s.makePodFiles, s.removePodFiles},
		{"network", s.addNetwork, s.delNetwork},
		{"init", s.startInit, s.deleteInit},
		{"ready", s.setReady, nil},
	}
}

// recordPod also gives the pod its SELinux labels: they are memory of this process and no trace in the kernel.
func (s *Server) recordPod(_ context.Context, p *pod) error {
	labels, err := label.Pod(p.rec.Load().Config.GetLinux().GetSecurityContext().GetSelinuxOptions())
	if err != nil {
		return err
	}
	cgroups, err := s.ownedCgroups(p.rec.Load().CgroupParent)
	if err != nil {
		return err
	}
	return p.write(func(rec *store.Pod) {
		rec.ProcessLabel, rec.MountLabel, rec.CgroupsMade = labels.Process, labels.Mount, cgroups
	})
}

func (s *Server) forgetPod(_ context.Context, p *pod) error {
	if err := s.records.DeletePod(p.id); err != nil {
		return err
	}
	label.Release(p.rec.Load().ProcessLabel)
	return nil
}

// ownedCgroups are those that will be made for a pod, and those above it that were made for other pods: whichever pod
// is removed last removes them. They are on record before they are made.
func (s *Server) ownedCgroups(parent string) ([]string, error) {
	dir, err := s.Cgroups.Dir(parent)
	if err != nil {
		return nil, err
	}
	s.cgroupMu.Lock()
	defer s.cgroupMu.Unlock()
	owned, err := s.Cgroups.Missing(parent)
	if err != nil {
		return nil, err
	}
	owned = append(owned, s.sharedCgroups(dir)...)
	slices.Sort(owned) // outermost first
	return slices.Compact(owned), nil
}

func (s *Server) makePodCgroup(_ context.Context, p *pod) error {
	s.cgroupMu.Lock()
	defer s.cgroupMu.Unlock()
	_, err := s.Cgroups.EnsurePod(p.rec.Load().CgroupParent)
	return err
}

// sharedCgroups are those above or at dir that were made for other pods.
func (s *Server) sharedCgroups(dir string) (shared []string) {
	for _, other := range s.pods.all() {
		for _, made := range other.rec.Load().CgroupsMade {
			if dir == made || strings.HasPrefix(dir, made+"/") {
				shared = append(shared, made)
			}
		}
	}
	return shared
}

// removePodCgroup leaves alone what is in use.
func (s *Server) removePodCgroup(_ context.Context, p *pod) error {
	s.cgroupMu.Lock()
	defer s.cgroupMu.Unlock()
	return s.Cgroups.Remove(p.rec.Load().CgroupsMade)
}

func (s *Server) makePodDir(_ context.Context, p *pod) error {
	// Root in a user namespace must get through it to what is mounted from below.
	return os.MkdirAll(p.dir, 0o711)
}

func (s *Server) removePodDir(_ context.Context, p *pod) error {
	return removeBelow(filepath.Dir(p.dir), string(p.id))
}

// removeBelow removes name and all below it in dir, without following links out of it. What was mounted there must
// have been unmounted before.
func removeBelow(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}

func (s *Server) makeNamespaces(ctx context.Context, p *pod) error {
	return s.Namespaces.Create(ctx, ns.Options{
		Dir: p.nsDir(),
		Net: !p.want.hostNetwork, UTS: !p.want.hostNetwork, IPC: !p.want.hostIPC,
		User: len(p.want.uids) > 0, UIDs: p.want.uids, GIDs: p.want.gids,
		Hostname: p.want.hostname, Sysctls: p.want.sysctls,
	})
}

func (s *Server) removeNamespaces(ctx context.Context, p *pod) error {
	return s.Namespaces.Delete(ctx, p.nsDir())
}

func (s *Server) makePodFiles(ctx context.Context, p *pod) error {
	return s.Lookup.MakePodFiles(ctx, p.files())
}

func (s *Server) removePodFiles(ctx context.Context, p *pod) error {
	return s.Lookup.RemovePodFiles(ctx, p.dir)
}

func (s *Server) addNetwork(ctx context.Context, p *pod) error {
	if p.want.hostNetwork {
		return nil
	}
	result, err := s.Network.Add(ctx, s.onNetwork(p))
	if err != nil {
		return err
	}
	p.note(func(rec *store.Pod) { rec.Network, rec.IPs = result.Network, result.IPs })
	return nil
}

func (s *Server) delNetwork(ctx context.Context, p *pod) error {
	if p.want.hostNetwork {
		return nil
	}
	return s.Network.Del(ctx, s.onNetwork(p))
}

// onNetwork is what plugins are told. A namespace that is gone, as after a reboot, is not named: its path could be
// another's by now.
func (s *Server) onNetwork(p *pod) cni.Pod {
	rec := p.rec.Load()
	m, dns := rec.Config.GetMetadata(), rec.Config.GetDnsConfig()
	netns := filepath.Join(p.nsDir(), "net")
	if !s.Namespaces.Alive(netns) {
		netns = ""
	}
	return cni.Pod{
		ID: string(p.id), Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		NetNS: netns, CgroupParent: rec.CgroupParent, PortMappings: p.want.ports,
		Annotations: rec.Config.GetAnnotations(),
		DNSServers:  dns.GetServers(), DNSSearches: dns.GetSearches(), DNSOptions: dns.GetOptions(),
	}
}

// startInit gives a pod with a shared PID namespace its process 1. The monitor knows it by the pod's ID.
func (s *Server) startInit(ctx context.Context, p *pod) error {
	if !p.want.sharedPID {
		return nil
	}
	out, err := s.initSpec(p)
	if err != nil {
		return err
	}
	created, err := retry(ctx, func() (conmon.Created, error) {
		return s.monitor.Create(ctx, conmon.CreateRequest{
			ID: string(p.id), Spec: out.Spec, SystemdCgroup: s.cfg.SystemdCgroup,
		})
	})
	if err != nil {
		return err
	}
	_, err = retry(ctx, func() (any, error) { return s.monitor.Start(ctx, string(p.id)) })
	if err != nil {
		return err
	}
	p.initPid.Store(int32(created.Pid))
	p.note(func(rec *store.Pod) { rec.Notes = append(rec.Notes, out.Notes...) })
	return nil
}

// initSpec describes the init of a pod: our own static binary and nothing else to see.
func (s *Server) initSpec(p *pod) (*spec.Output, error) {
	rec := p.rec.Load()
	root, err := s.initRoot(rec.MountLabel)
	if err != nil {
		return nil, err
	}
	cgroups, err := s.Cgroups.ContainerPath(rec.CgroupParent, string(p.id))
	if err != nil {
		return nil, err
	}
	in := spec.Input{
		Host: s.Host, ID: string(p.id), Sandbox: rec.Config, Rootfs: root,
		Namespaces: p.namespacePaths(), CgroupsPath: cgroups, Hostname: p.hostname(),
		ProcessLabel: rec.ProcessLabel, MountLabel: rec.MountLabel,
	}
	in.UIDs, in.GIDs = p.want.ociMaps()
	return spec.PodInit(in)
}

func (s *Server) deleteInit(ctx context.Context, p *pod) error {
	p.initPid.Store(0)
	if !p.want.sharedPID {
		return nil
	}
	_, err := retry(ctx, func() (any, error) { return nil, s.monitor.Delete(ctx, string(p.id)) })
	return err
}

func (s *Server) setReady(_ context.Context, p *pod) error {
	return p.move(store.PodReady, func(rec *store.Pod) { rec.Timings = p.took() })
}
