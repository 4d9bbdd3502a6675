package main

import (
	"errors"
	"fmt"

	"github.com/orlop/orlop/proxy"
	"github.com/orlop/orlop/proxy/config"
	"github.com/orlop/orlop/proxy/nft"
)

func newBackend(s settings) (proxy.Backend, error) {
	switch s.config.Mode {
	case config.NFTables:
		return nft.New(s.log)
	}
	return nil, fmt.Errorf("mode %q is not there", s.config.Mode)
}

// cleanup removes the rules of all modes but one.
func cleanup(but string) error {
	var errs []error
	if but != config.NFTables {
		errs = append(errs, nft.Cleanup())
	}
	return errors.Join(errs...)
}
