package stats

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	api "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// What /metrics tells of volumes that belong to claims, by which alerts know that one fills up.
var (
	ofClaim = []string{"namespace", "persistentvolumeclaim"}

	claimCapacity   = newDesc("kubelet_volume_stats_capacity_bytes", "Size of the claim's volume, in bytes.", ofClaim...)
	claimAvailable  = newDesc("kubelet_volume_stats_available_bytes", "What is free of the claim's volume, in bytes.", ofClaim...)
	claimUsed       = newDesc("kubelet_volume_stats_used_bytes", "What is used of the claim's volume, in bytes.", ofClaim...)
	claimInodes     = newDesc("kubelet_volume_stats_inodes", "Inodes of the claim's volume.", ofClaim...)
	claimInodesFree = newDesc("kubelet_volume_stats_inodes_free", "Inodes of the claim's volume that are free.", ofClaim...)
	claimInodesUsed = newDesc("kubelet_volume_stats_inodes_used", "Inodes of the claim's volume that are used.", ofClaim...)
)

// Claims collects the metrics of volumes that belong to claims.
func (p *Provider) Claims() prometheus.Collector { return claimCollector{p} }

type claimCollector struct{ p *Provider }

// Describe sends nothing: which metrics there are depends on what runs.
func (c claimCollector) Describe(chan<- *prometheus.Desc) {}

func (c claimCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), measureTime)
	defer cancel()
	s, err := c.p.Summary(ctx)
	if err != nil {
		c.p.cfg.Log.Warn("no metrics of volumes", "err", err)
		return
	}
	seen := map[api.PVCReference]bool{} // pods may share a claim, which has one size
	for _, pod := range s.Pods {
		for _, v := range pod.VolumeStats {
			if v.PVCRef != nil && !seen[*v.PVCRef] {
				seen[*v.PVCRef] = true
				sink(out).claim(v)
			}
		}
	}
}

func (out sink) claim(v api.VolumeStats) {
	for _, m := range []struct {
		desc  *prometheus.Desc
		value *uint64
	}{
		{claimCapacity, v.CapacityBytes}, {claimAvailable, v.AvailableBytes}, {claimUsed, v.UsedBytes},
		{claimInodes, v.Inodes}, {claimInodesFree, v.InodesFree}, {claimInodesUsed, v.InodesUsed},
	} {
		if m.value != nil {
			out.now(m.desc, float64(*m.value), v.PVCRef.Namespace, v.PVCRef.Name)
		}
	}
}
