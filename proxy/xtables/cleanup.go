package xtables

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// Cleanup removes all chains of ours, and what leads to them.
func (p *Program) Cleanup(ctx context.Context) error {
	have, err := p.Existing(ctx)
	if err != nil {
		return err
	}
	var all []Section
	for _, table := range Tables {
		all = append(all, Section{Table: table, Other: have.Fix(table, nil)})
	}
	if err := p.Set(ctx, all...); err != nil {
		return err
	}
	return p.Drop(ctx, have.Stale(func(ChainID) bool { return false }))
}

// cleanupTimeout is for many chains on a slow machine.
const cleanupTimeout = 5 * time.Minute

// Cleanup removes what a mode that uses iptables made, ours or kube-proxy's: rules of nftables and legacy ones, where there
// is a program for them. The rule against packets to the loopback address stays: it is the kubelet's, too.
func Cleanup() error {
	return cleanup(func(*Program) bool { return true })
}

// CleanupOther is Cleanup for the kind that the programs of this node are not of. Packets would meet the rules of both.
func CleanupOther() error {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	chosen := map[model.Family]*Program{}
	for family := range names {
		p, err := find(ctx, family)
		if err != nil {
			return err
		}
		chosen[family] = p
	}
	return cleanup(func(p *Program) bool { return p.NFT != chosen[p.Family].NFT })
}

func cleanup(which func(*Program) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	var errs []error
	for _, family := range []model.Family{model.IPv4, model.IPv6} {
		for _, nft := range []bool{true, false} {
			p := &Program{Family: family, Name: variant(family, nft), NFT: nft}
			if _, err := exec.LookPath(p.Name); err != nil || !which(p) || !nft && !hasLegacyTables(family) {
				continue
			}
			if err := p.Cleanup(ctx); err != nil {
				errs = append(errs, fmt.Errorf("clean up: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
