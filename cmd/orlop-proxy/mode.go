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
	"github.com/orlop/orlop/proxy/xtables"
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

// cleanup removes what all modes but one made. Rules of the modes that use iptables have names in common, and each of these
// modes removes those of the other one when it sets its own. What IPVS made goes first, as its rules hold its sets.
func cleanup(but string) error {
	var errs []error
	if but != config.IPVS {
		errs = append(errs, ipvs.Cleanup())
	}
	if but != config.IPVS && but != config.IPTables {
		errs = append(errs, xtables.Cleanup())
	} else {
		errs = append(errs, xtables.CleanupOther())
	}
	if but != config.NFTables {
		errs = append(errs, nft.Cleanup())
	}
	return errors.Join(errs...)
}
