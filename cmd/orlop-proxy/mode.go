package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/config"
	"github.com/orlop/orlop/proxy/iptables"
	"github.com/orlop/orlop/proxy/ipvs"
	"github.com/orlop/orlop/proxy/nft"
)

func newBackend(s settings) (proxy.Backend, error) {
	switch s.config.Mode {
	case config.NFTables:
		return nft.New(s.log)
	case config.IPTables:
		return iptables.New(s.log)
	case config.IPVS:
		return ipvs.New(s.log, ipvsSettings(s.config))
	}
	return nil, fmt.Errorf("mode %q is not there", s.config.Mode)
}

func ipvsSettings(c *config.Config) ipvs.Settings {
	out := ipvs.Settings{
		Scheduler: c.IPVS.Scheduler, StrictARP: c.IPVS.StrictARP,
		TCP: c.IPVS.TCPTimeout.Duration, TCPFin: c.IPVS.TCPFinTimeout.Duration, UDP: c.IPVS.UDPTimeout.Duration,
	}
	for _, cidr := range c.IPVS.ExcludeCIDRs {
		if prefix, err := netip.ParsePrefix(cidr); err == nil { // Validate has told of others
			out.Exclude = append(out.Exclude, prefix)
		}
	}
	return out
}

// cleanups remove what a mode made.
var cleanups = map[string]func() error{config.NFTables: nft.Cleanup, config.IPTables: iptables.Cleanup, config.IPVS: ipvs.Cleanup}

// cleanup removes the rules of all modes but one.
func cleanup(but string) error {
	var errs []error
	for mode, clean := range cleanups {
		if mode != but {
			errs = append(errs, clean())
		}
	}
	return errors.Join(errs...)
}
