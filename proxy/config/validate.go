package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Validate returns all mistakes, joined. The defaults must be filled in.
func (c *Config) Validate() error {
	p := &problems{}
	p.add(!slices.Contains([]string{NFTables, IPTables, IPVS}, string(c.Mode)), "mode %q: write nftables, iptables or ipvs", c.Mode)
	p.addr("bindAddress", c.BindAddress)
	p.addrPort("healthzBindAddress", c.HealthzBindAddress)
	p.addrPort("metricsBindAddress", c.MetricsBindAddress)
	p.bit("iptables.masqueradeBit", *c.IPTables.MasqueradeBit)
	p.bit("nftables.masqueradeBit", *c.NFTables.MasqueradeBit)
	p.add(*c.OOMScoreAdj < -1000 || *c.OOMScoreAdj > 1000, "oomScoreAdj %d: must be from -1000 to 1000", *c.OOMScoreAdj)
	p.add(*c.Conntrack.MaxPerCore < 0, "conntrack.maxPerCore %d: must not be negative", *c.Conntrack.MaxPerCore)
	p.add(*c.Conntrack.Min < 0, "conntrack.min %d: must not be negative", *c.Conntrack.Min)
	for _, cidr := range c.clusterCIDRs() {
		p.cidr("clusterCIDR", cidr)
	}
	for _, cidr := range c.IPVS.ExcludeCIDRs {
		p.cidr("ipvs.excludeCIDRs", cidr)
	}
	c.checkNodePorts(p)
	c.checkDetectLocal(p)
	return errors.Join(p.errs...)
}

func (c *Config) checkNodePorts(p *problems) {
	for _, cidr := range c.NodePortAddresses {
		if cidr == primary {
			p.add(len(c.NodePortAddresses) > 1, "nodePortAddresses: %q stands alone; remove the other values", primary)
			continue
		}
		p.cidr("nodePortAddresses", cidr)
	}
}

func (c *Config) checkDetectLocal(p *problems) {
	switch c.DetectLocalMode {
	case ClusterCIDR, NodeCIDR:
	case BridgeInterface:
		p.add(c.DetectLocal.BridgeInterface == "", "detectLocal.bridgeInterface: write an interface's name, as detectLocalMode is %s", BridgeInterface)
	case InterfaceNamePrefix:
		p.add(c.DetectLocal.InterfaceNamePrefix == "", "detectLocal.interfaceNamePrefix: write how names begin, as detectLocalMode is %s", InterfaceNamePrefix)
	default:
		p.add(true, "detectLocalMode %q: write ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix", c.DetectLocalMode)
	}
}

func (c *Config) clusterCIDRs() []string {
	if c.ClusterCIDR == "" {
		return nil
	}
	return strings.Split(c.ClusterCIDR, ",")
}

// problems are what is wrong with a configuration.
type problems struct{ errs []error }

func (p *problems) add(wrong bool, format string, args ...any) {
	if wrong {
		p.errs = append(p.errs, fmt.Errorf(format, args...))
	}
}

func (p *problems) addr(field, value string) {
	_, err := netip.ParseAddr(value)
	p.add(err != nil, "%s %q: write an IP address", field, value)
}

func (p *problems) addrPort(field, value string) {
	_, err := parseAddrPort(value)
	p.add(err != nil, "%s %q: write an IP address and a port, as 127.0.0.1:10249", field, value)
}

// parseAddrPort takes a port of 0 for none, as kube-proxy's users write it.
func parseAddrPort(s string) (netip.AddrPort, error) {
	return netip.ParseAddrPort(s)
}

func (p *problems) cidr(field, value string) {
	_, err := netip.ParsePrefix(strings.TrimSpace(value))
	p.add(err != nil, "%s %q: write an address and a number of bits, as 10.0.0.0/8", field, value)
}

func (p *problems) bit(field string, value int32) {
	p.add(value < 0 || value > 31, "%s %d: must be from 0 to 31", field, value)
}
