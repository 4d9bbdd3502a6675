// Package iptables makes the kernel treat packets to Services as package model says, by iptables.
//
// What it makes is what a kube-proxy in this mode makes, under the same names, but that the chains of all Services are
// trees (see name.go): a packet meets some dozens of rules whatever the number of Services, and a change rewrites the
// chains that it changes, never one with a rule for each Service.
//
// What the kernel holds is kept in memory. A change is one run of iptables-restore with those chains.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/orlop/orlop/proxy/model"
	"github.com/orlop/orlop/proxy/sysctl"
	"github.com/orlop/orlop/proxy/xtables"
)

// Backend is a proxy.Backend.
type Backend struct {
	log    *slog.Logger
	kernel *xtables.Handle
	tables map[model.Family]*tables
}

// New is a backend in the network namespace of the process. Nothing is changed before Replace.
func New(log *slog.Logger) (*Backend, error) { return open(log, xtables.UsualPoll) }

func open(log *slog.Logger, poll time.Duration) (*Backend, error) {
	kernel, err := xtables.Open(log, hooks(), poll)
	if err != nil {
		return nil, err
	}
	return &Backend{log: log, kernel: kernel, tables: map[model.Family]*tables{}}, nil
}

// Replace is of proxy.Backend.
func (b *Backend) Replace(ctx context.Context, rules model.Rules) error {
	if err := xtables.CheckNetwork(&rules.Network); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	if err := Prepare(&rules.Network); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	b.tables = map[model.Family]*tables{}
	var errs []error
	for family, p := range b.kernel.Programs {
		if slices.Contains(rules.Network.Families, family) {
			errs = append(errs, b.replace(ctx, p, &rules))
		} else if _, err := os.Stat("/proc/net/if_inet6"); family == model.IPv4 || err == nil {
			errs = append(errs, p.Cleanup(ctx))
		}
	}
	errs = append(errs, b.kernel.Settled())
	return errors.Join(errs...)
}

// Prepare has the kernel route packets from the loopback address to endpoints, which takes more than CAP_NET_ADMIN. It is not
// undone: others may want it, too, and KUBE-FIREWALL makes it harmless.
func Prepare(n *model.Network) error {
	if !slices.Contains(n.Families, model.IPv4) || !localhost(families[model.IPv4], n) {
		return nil
	}
	return sysctl.Setting{Path: "net/ipv4/conf/all/route_localnet", Value: 1}.Set()
}

// replace sets all rules of a family.
func (b *Backend) replace(ctx context.Context, p *xtables.Program, rules *model.Rules) error {
	t, c, err := fresh(families[p.Family], rules)
	if err != nil {
		return err
	}
	have, err := p.Existing(ctx)
	if err != nil {
		return err
	}
	for _, sections := range replacement(t, c, have, p.ChainsAtOnce()) {
		if err := p.Set(ctx, sections...); err != nil {
			return err
		}
	}
	b.tables[p.Family] = t
	keep := func(id xtables.ChainID) bool { return c.chains[id.Name] != nil || t.shared[id] != nil }
	if err := p.Drop(ctx, have.Stale(keep)); err != nil {
		b.log.Warn("chains without use are still there", "err", err)
	}
	return nil
}

// Apply is of proxy.Backend.
func (b *Backend) Apply(ctx context.Context, changes []model.Change) error {
	byFamily := map[model.Family]*change{}
	for _, change := range changes {
		key := change.Key()
		t := b.tables[key.Family]
		if t == nil {
			continue
		}
		if byFamily[key.Family] == nil {
			byFamily[key.Family] = newChange()
		}
		if err := t.put(byFamily[key.Family], key, change.New); err != nil {
			return err
		}
	}
	for _, family := range slices.Sorted(maps.Keys(byFamily)) {
		if err := b.kernel.Programs[family].Restore(ctx, b.tables[family].apply(byFamily[family])); err != nil {
			return err
		}
	}
	return b.kernel.Settled()
}

// Tampered is of proxy.Backend.
func (b *Backend) Tampered() <-chan struct{} { return b.kernel.Tampered() }

// Close is of proxy.Backend.
func (b *Backend) Close() error { return b.kernel.Close() }
