package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
)

// Validate returns all mistakes, joined. The defaults must be filled in.
func (c *Config) Validate() error {
	p := &problems{}
	c.checkServer(p)
	c.checkNode(p)
	c.checkPods(p)
	c.checkCare(p)
	return errors.Join(p.errs...)
}

// problems are what is wrong with a configuration.
type problems struct{ errs []error }

func (p *problems) add(wrong bool, format string, args ...any) {
	if wrong {
		p.errs = append(p.errs, fmt.Errorf(format, args...))
	}
}

func (c *Config) checkServer(p *problems) {
	p.add(net.ParseIP(c.Address) == nil, "address %q: write an IP address", c.Address)
	p.add(net.ParseIP(c.HealthzBindAddress) == nil, "healthzBindAddress %q: write an IP address", c.HealthzBindAddress)
	p.add(c.Port < 1 || c.Port > 65535, "port %d: must be from 1 to 65535", c.Port)
	p.add(c.ReadOnlyPort < 0 || c.ReadOnlyPort > 65535, "readOnlyPort %d: must be from 1 to 65535, or 0 for none", c.ReadOnlyPort)
	p.add(*c.HealthzPort < 0 || *c.HealthzPort > 65535, "healthzPort %d: must be from 1 to 65535, or 0 for none", *c.HealthzPort)
	p.add((c.TLSCertFile == "") != (c.TLSPrivateKeyFile == ""), "tlsCertFile, tlsPrivateKeyFile: set both or none")
	mode := c.Authorization.Mode
	p.add(mode != kubeletconfig.KubeletAuthorizationModeAlwaysAllow && mode != kubeletconfig.KubeletAuthorizationModeWebhook,
		"authorization.mode %q: write Webhook or AlwaysAllow", mode)
}

func (c *Config) checkNode(p *problems) {
	p.add(c.CgroupDriver != "cgroupfs" && c.CgroupDriver != "systemd", "cgroupDriver %q: write cgroupfs or systemd", c.CgroupDriver)
	p.add(!strings.HasPrefix(c.ContainerRuntimeEndpoint, "unix:///"), "containerRuntimeEndpoint %q: write unix:///path/to/socket", c.ContainerRuntimeEndpoint)
	p.add(c.ImageServiceEndpoint != "" && !strings.HasPrefix(c.ImageServiceEndpoint, "unix:///"),
		"imageServiceEndpoint %q: write unix:///path/to/socket", c.ImageServiceEndpoint)
	p.add(c.NodeLeaseDurationSeconds < 1, "nodeLeaseDurationSeconds %d: must be at least 1", c.NodeLeaseDurationSeconds)
	p.add(c.NodeStatusUpdateFrequency.Duration < 0, "nodeStatusUpdateFrequency %s: must not be negative", c.NodeStatusUpdateFrequency.Duration)
	p.add(*c.NodeStatusMaxImages < -1, "nodeStatusMaxImages %d: must be at least 0, or -1 for all", *c.NodeStatusMaxImages)
	p.add(*c.KubeAPIQPS < 0, "kubeAPIQPS %d: must not be negative", *c.KubeAPIQPS)
	p.add(*c.EventRecordQPS < 0, "eventRecordQPS %d: must not be negative", *c.EventRecordQPS)
	for field, reserved := range map[string]map[string]string{"systemReserved": c.SystemReserved, "kubeReserved": c.KubeReserved} {
		for _, name := range slices.Sorted(maps.Keys(reserved)) {
			q, err := resource.ParseQuantity(reserved[name])
			p.add(err != nil, "%s: %s: %q: %w", field, name, reserved[name], err)
			p.add(q.Sign() < 0, "%s: %s: %q: must not be negative", field, name, reserved[name])
		}
	}
	for _, level := range c.EnforceNodeAllocatable {
		p.add(level != "pods" && level != "none" && !strings.HasPrefix(level, "system-reserved") && !strings.HasPrefix(level, "kube-reserved"),
			"enforceNodeAllocatable: %q: write pods or none", level)
	}
	for _, t := range c.RegisterWithTaints {
		p.add(t.Effect != v1.TaintEffectNoSchedule && t.Effect != v1.TaintEffectPreferNoSchedule && t.Effect != v1.TaintEffectNoExecute,
			"registerWithTaints: %s: effect %q: write NoSchedule, PreferNoSchedule or NoExecute", t.Key, t.Effect)
	}
}

func (c *Config) checkPods(p *problems) {
	p.add(c.MaxPods < 1, "maxPods %d: must be at least 1", c.MaxPods)
	p.add(c.PodsPerCore < 0, "podsPerCore %d: must not be negative", c.PodsPerCore)
	p.add(*c.PodPidsLimit == 0 || *c.PodPidsLimit < -1, "podPidsLimit %d: must be at least 1, or -1 for no limit", *c.PodPidsLimit)
	for _, server := range c.ClusterDNS {
		p.add(net.ParseIP(server) == nil, "clusterDNS: %q: write an IP address", server)
	}
	_, err := resource.ParseQuantity(c.ContainerLogMaxSize)
	p.add(err != nil, "containerLogMaxSize %q: %w", c.ContainerLogMaxSize, err)
	p.add(*c.ContainerLogMaxFiles < 2, "containerLogMaxFiles %d: must be at least 2", *c.ContainerLogMaxFiles)
	p.add(c.MaxParallelImagePulls != nil && *c.MaxParallelImagePulls < 1, "maxParallelImagePulls: must be at least 1")
	p.add(c.MaxParallelImagePulls != nil && *c.MaxParallelImagePulls > 1 && *c.SerializeImagePulls,
		"maxParallelImagePulls: set serializeImagePulls: false to pull more than one image at a time")
	swap := c.MemorySwap.SwapBehavior
	p.add(swap != "" && swap != "NoSwap" && swap != "LimitedSwap", "memorySwap.swapBehavior %q: write NoSwap or LimitedSwap", swap)
}

func (c *Config) checkCare(p *problems) {
	high, low := *c.ImageGCHighThresholdPercent, *c.ImageGCLowThresholdPercent
	p.add(high > 100 || low < 0 || low >= high,
		"imageGCLowThresholdPercent %d, imageGCHighThresholdPercent %d: must be from 0 to 100, the low one below the high one", low, high)
	p.add(c.ImageMinimumGCAge.Duration < 0, "imageMinimumGCAge %s: must not be negative", c.ImageMinimumGCAge.Duration)
	for _, signal := range slices.Sorted(maps.Keys(c.EvictionSoft)) {
		p.add(c.EvictionSoftGracePeriod[signal] == "", "evictionSoft: %s: evictionSoftGracePeriod must have it too", signal)
	}
	p.add(c.EvictionMaxPodGracePeriod < 0, "evictionMaxPodGracePeriod %d: must not be negative", c.EvictionMaxPodGracePeriod)
	c.checkShutdown(p)
}

// checkShutdown wants one of the two ways to say how long pods get when the machine is shut down (KEP-2000, KEP-2712).
func (c *Config) checkShutdown(p *problems) {
	critical, all := c.ShutdownGracePeriodCriticalPods.Duration, c.ShutdownGracePeriod.Duration
	p.add(critical > all, "shutdownGracePeriodCriticalPods %s: must not be above shutdownGracePeriod %s", critical, all)
	p.add(all != 0 && all < time.Second, "shutdownGracePeriod %s: must be at least 1s, or 0 for none", all)
	p.add(critical != 0 && critical < time.Second, "shutdownGracePeriodCriticalPods %s: must be at least 1s, or 0 for none", critical)
	p.add(len(c.ShutdownGracePeriodByPodPriority) > 0 && (all > 0 || critical > 0),
		"shutdownGracePeriodByPodPriority: set either it or shutdownGracePeriod")
	for _, group := range c.ShutdownGracePeriodByPodPriority {
		p.add(group.ShutdownGracePeriodSeconds < 0, "shutdownGracePeriodByPodPriority: priority %d: shutdownGracePeriodSeconds %d: must not be negative",
			group.Priority, group.ShutdownGracePeriodSeconds)
	}
}
