package main

import (
	"errors"
	"fmt"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/config"
	"github.com/orlop/orlop/proxy/iptables"
	"github.com/orlop/orlop/proxy/nft"
)

func newBackend(s settings) (proxy.Backend, error) {
	switch s.config.Mode {
	case config.NFTables:
		return nft.New(s.log)
	case config.IPTables:
		return iptables.New(s.log)
	}
	return nil, fmt.Errorf("mode %q is not there", s.config.Mode)
}

// cleanups remove what a mode made.
var cleanups = map[string]func() error{config.NFTables: nft.Cleanup, config.IPTables: iptables.Cleanup}

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
