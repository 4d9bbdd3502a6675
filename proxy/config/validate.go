package config

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"time"
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
	p.add(c.ClientConnection.Burst < 0, "clientConnection.burst %d: must not be negative", c.ClientConnection.Burst)
	for _, cidr := range c.clusterCIDRs() {
		p.cidr("clusterCIDR", cidr)
	}
	for i, cidr := range c.IPVS.ExcludeCIDRs {
		p.cidr(fmt.Sprintf("ipvs.excludeCIDRs[%d]", i), cidr)
	}
	c.checkDurations(p)
	c.checkNodePorts(p)
	c.checkDetectLocal(p)
	return errors.Join(p.errs...)
}

func (c *Config) checkDurations(p *problems) {
	for field, d := range map[string]time.Duration{
		"iptables.minSyncPeriod": c.IPTables.MinSyncPeriod.Duration, "ipvs.minSyncPeriod": c.IPVS.MinSyncPeriod.Duration,
		"nftables.minSyncPeriod": c.NFTables.MinSyncPeriod.Duration,
		"ipvs.tcpTimeout":        c.IPVS.TCPTimeout.Duration, "ipvs.tcpFinTimeout": c.IPVS.TCPFinTimeout.Duration, "ipvs.udpTimeout": c.IPVS.UDPTimeout.Duration,
		"conntrack.tcpEstablishedTimeout": c.Conntrack.TCPEstablishedTimeout.Duration,
		"conntrack.tcpCloseWaitTimeout":   c.Conntrack.TCPCloseWaitTimeout.Duration,
		"conntrack.udpTimeout":            c.Conntrack.UDPTimeout.Duration, "conntrack.udpStreamTimeout": c.Conntrack.UDPStreamTimeout.Duration,
	} {
		p.add(d < 0, "%s %s: must not be negative", field, d)
	}
}

func (c *Config) checkNodePorts(p *problems) {
	for i, text := range c.NodePortAddresses {
		switch text {
		case primary, localhost, everyone:
			continue
		}
		_, err := parseCIDR(text)
		p.add(err != nil, "nodePortAddresses[%d] %q: write a range, as 10.0.0.0/8, or primary, localhost or all", i, text)
	}
}

func (c *Config) checkDetectLocal(p *problems) {
	switch c.DetectLocalMode {
	case ClusterCIDR, NodeCIDR:
	case BridgeInterface:
		p.interfaceName("detectLocal.bridgeInterface", c.DetectLocal.BridgeInterface)
	case InterfaceNamePrefix:
		p.interfaceName("detectLocal.interfaceNamePrefix", c.DetectLocal.InterfaceNamePrefix)
	default:
		p.add(true, "detectLocalMode %q: write ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix", c.DetectLocalMode)
	}
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
	_, err := netip.ParseAddrPort(value)
	p.add(err != nil, "%s %q: write an IP address and a port, as 127.0.0.1:10249; port 0 is for no server", field, value)
}

func (p *problems) cidr(field, value string) {
	_, err := parseCIDR(value)
	p.add(err != nil, "%s %q: write an address and a number of bits, as 10.0.0.0/8", field, value)
}

// interfaceNames are as the rules of every mode can have them, of IFNAMSIZ bytes at most with the zero byte.
var interfaceNames = regexp.MustCompile(`^[A-Za-z0-9_.:@-]{1,15}$`)

func (p *problems) interfaceName(field, value string) {
	p.add(!interfaceNames.MatchString(value), "%s %q: write 1 to 15 letters, digits and _.:@-, as detectLocalMode asks for it", field, value)
}

func (p *problems) bit(field string, value int32) {
	p.add(value < 0 || value > 31, "%s %d: must be from 0 to 31", field, value)
}
