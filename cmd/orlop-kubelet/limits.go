package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/orlop/orlop/kubelet/cgroup"
	"github.com/orlop/orlop/kubelet/config"
	"github.com/orlop/orlop/kubelet/machine"
	podresource "github.com/orlop/orlop/kubelet/resource"
	"github.com/orlop/orlop/kubelet/spec"
)

// limits are what the node has, and what of it pods may have.
type limits struct {
	capacity, allocatable v1.ResourceList
}

func newLimits(c *config.Config, f machine.Facts) (limits, error) {
	capacity := f.Capacity(int64(c.MaxPods), int64(c.PodsPerCore))
	system, err := quantities("systemReserved", c.SystemReserved)
	if err != nil {
		return limits{}, err
	}
	own, err := quantities("kubeReserved", c.KubeReserved)
	if err != nil {
		return limits{}, err
	}
	kept, err := keptFree(c.EvictionHard, capacity)
	if err != nil {
		return limits{}, err
	}
	return limits{capacity, machine.Allocatable(capacity, system, own, kept)}, nil
}

func quantities(field string, in map[string]string) (v1.ResourceList, error) {
	out := v1.ResourceList{}
	for name, value := range in {
		q, err := resource.ParseQuantity(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %q: %w", field, name, value, err)
		}
		out[v1.ResourceName(name)] = q
	}
	return out, nil
}

// keptFree is what hard eviction keeps free, and what pods can't have therefore.
func keptFree(thresholds map[string]string, capacity v1.ResourceList) (v1.ResourceList, error) {
	out := v1.ResourceList{}
	for signal, name := range map[string]v1.ResourceName{"memory.available": v1.ResourceMemory, "nodefs.available": v1.ResourceEphemeralStorage} {
		text, ok := thresholds[signal]
		if !ok {
			continue
		}
		if percent, ok := strings.CutSuffix(text, "%"); ok {
			p, err := strconv.ParseFloat(percent, 64)
			if err != nil {
				return nil, fmt.Errorf("evictionHard: %s: %q: %w", signal, text, err)
			}
			has := capacity[name]
			out[name] = *resource.NewQuantity(int64(float64(has.Value())*p/100), resource.BinarySI)
			continue
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("evictionHard: %s: %q: %w", signal, text, err)
		}
		out[name] = q
	}
	return out, nil
}

// spec is what the specs of all pods are made with.
func (p *parts) spec() (spec.Node, error) {
	c := p.config
	resolv := ""
	if *c.ResolverConfig != "" {
		data, err := os.ReadFile(*c.ResolverConfig)
		if err != nil {
			return spec.Node{}, fmt.Errorf("resolvConf: %w", err)
		}
		resolv = string(data)
	}
	var pages []int64
	for size := range p.facts.HugePages {
		pages = append(pages, size)
	}
	return spec.Node{
		Node: podresource.Node{
			Memory: p.facts.Memory, Swap: p.facts.Swap, SwapLimited: c.MemorySwap.SwapBehavior == "LimitedSwap",
			NoQuota: !*c.CPUCFSQuota, CgroupV2: cgroup.V2(), HugePages: pages,
		},
		DNS:            spec.DNS{Node: spec.ParseResolvConf(resolv), Servers: c.ClusterDNS, Domain: c.ClusterDomain},
		LogsDir:        c.PodLogsDir,
		SeccompDir:     filepath.Join(p.flags.RootDir, "seccomp"),
		SeccompDefault: *c.SeccompDefault,
		CPUs:           p.facts.CPUs,
	}, nil
}
