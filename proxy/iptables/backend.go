// Package iptables makes the kernel treat packets to Services as package model says, by iptables.
//
// What it makes is what a kube-proxy in this mode makes, under the same names, but that the chains of all Services are
// trees (see name.go): a packet meets some dozens of rules whatever the number of Services, and a change rewrites the
// chains that it changes, never one with a rule for each Service.
//
// What the kernel holds is kept in memory. A change is one run of iptables-restore with those chains.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// Backend is a proxy.Backend.
type Backend struct {
	log      *slog.Logger
	programs map[model.Family]*program
	tables   map[model.Family]*tables
	watch    *watch
}

// askTimeout is for questions to the programs.
const askTimeout = 30 * time.Second

// New is a backend in the network namespace of the process. Nothing is changed before Replace.
func New(log *slog.Logger) (*Backend, error) { return open(log, usualPace) }

func open(log *slog.Logger, pace pace) (*Backend, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	b := &Backend{log: log, programs: map[model.Family]*program{}, tables: map[model.Family]*tables{}}
	nft := false
	for _, f := range families {
		p, err := findProgram(ctx, f)
		if err != nil {
			return nil, err
		}
		b.programs[f.Family] = p
		nft = nft || p.nft
		b.warnOfOther(ctx, p)
	}
	var err error
	if b.watch, err = newWatch(log, nft, pace); err != nil {
		return nil, fmt.Errorf("iptables: watch: %w", err)
	}
	for _, p := range b.programs {
		p.began = b.watch.ignore
	}
	return b, nil
}

// warnOfOther tells if the kernel has a kube-proxy's rules of the other kind: packets would meet both. The program for
// legacy rules is not asked where there are no legacy tables, since it would make them.
func (b *Backend) warnOfOther(ctx context.Context, p *program) {
	if p.nft && !hasLegacyTables(p.family) {
		return
	}
	if _, err := run(ctx, p.variant(true), "-t", nat, "-S", services); err == nil {
		b.log.Warn("a kube-proxy left rules of the other kind, which packets meet too; remove them",
			"ours", p.variant(false), "other", p.variant(true))
	}
}

func hasLegacyTables(f *family) bool {
	file := "/proc/net/ip_tables_names"
	if f.Family == model.IPv6 {
		file = "/proc/net/ip6_tables_names"
	}
	names, err := os.ReadFile(file)
	return err == nil && bytes.Contains(names, []byte(nat))
}

// Replace is of proxy.Backend.
func (b *Backend) Replace(ctx context.Context, rules model.Rules) error {
	if err := checkNetwork(&rules.Network); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	if err := routeLocalnet(&rules.Network); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	b.tables = map[model.Family]*tables{}
	var errs []error
	for family, p := range b.programs {
		if slices.Contains(rules.Network.Families, family) {
			errs = append(errs, b.replace(ctx, p, &rules))
		} else if _, err := os.Stat("/proc/net/if_inet6"); family == model.IPv4 || err == nil {
			errs = append(errs, p.cleanup(ctx))
		}
	}
	errs = append(errs, b.watch.settled(b.programs))
	return errors.Join(errs...)
}

// routeLocalnet has the kernel route packets from the loopback address to endpoints. It is not undone: others may want
// it, too, and KUBE-FIREWALL makes it harmless.
func routeLocalnet(n *model.Network) error {
	if !slices.Contains(n.Families, model.IPv4) || !localhost(families[model.IPv4], n) {
		return nil
	}
	const path = "/proc/sys/net/ipv4/conf/all/route_localnet"
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(bytes.TrimSpace(have), []byte("1")) {
		return nil
	}
	return os.WriteFile(path, []byte("1"), 0o644)
}

// replace sets all rules of a family.
func (b *Backend) replace(ctx context.Context, p *program, rules *model.Rules) error {
	t, c, err := fresh(p.family, rules)
	if err != nil {
		return err
	}
	have, err := p.existing(ctx)
	if err != nil {
		return err
	}
	for _, sections := range replacement(t, c, have, p.chunk()) {
		if err := p.sections(ctx, sections...); err != nil {
			return err
		}
	}
	b.tables[p.family.Family] = t
	if err := p.drop(ctx, have.stale(t, c)); err != nil {
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
		if err := b.programs[family].restore(ctx, b.tables[family].apply(byFamily[family])); err != nil {
			return err
		}
	}
	return b.watch.settled(b.programs)
}

// Tampered is of proxy.Backend.
func (b *Backend) Tampered() <-chan struct{} { return b.watch.tampered }

// Close is of proxy.Backend.
func (b *Backend) Close() error { return b.watch.close() }
