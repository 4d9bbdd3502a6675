// Package iptables makes the kernel treat packets to Services as package model says, by iptables.
//
// Chains are those that kube-proxy's users know: KUBE-SVC- and KUBE-SVL- take an endpoint, KUBE-SEP- sends to it, KUBE-EXT-
// is how others than a ClusterIP are treated. They are reached from KUBE-SERVICES, which leads to one chain for each block
// of 256 addresses, where kube-proxy has one long list: a packet meets the rules of its block alone, and what changes is
// restored with its block alone.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/orlop/orlop/proxy/model"
)

// Backend is a proxy.Backend.
type Backend struct {
	log     *slog.Logger
	network model.Network
	tables  map[model.Family]*table
	watch   *watch
}

// New is a backend in the network namespace of this process. Nothing is changed before Replace.
func New(log *slog.Logger) (*Backend, error) {
	for _, p := range programs {
		if _, err := exec.LookPath(p + "-restore"); err != nil {
			return nil, fmt.Errorf("iptables: install the package iptables: %w", err)
		}
	}
	return &Backend{log: log, watch: newWatch(log), tables: map[model.Family]*table{}}, nil
}

var programs = map[model.Family]string{model.IPv4: "iptables", model.IPv6: "ip6tables"}

// Replace is of proxy.Backend.
func (b *Backend) Replace(ctx context.Context, rules model.Rules) error {
	if err := check(&rules.Network); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	b.network = rules.Network
	b.tables = map[model.Family]*table{}
	for _, family := range rules.Network.Families {
		t, e := newTable(family, &b.network), newEdit()
		b.tables[family] = t
		for _, port := range rules.Ports {
			if port.Key.Family == family {
				t.put(e, port.Key, port)
			}
		}
		t.fixed(e)
		t.settle(e)
		if err := e.dropOthers(ctx, family); err != nil {
			return err
		}
		if err := restore(ctx, family, e.text()); err != nil {
			return err
		}
		if err := hook(ctx, family); err != nil {
			return err
		}
	}
	b.watch.begin(rules.Network.Families)
	return b.routeLocalhost()
}

// routeLocalhost has the kernel accept answers for 127.0.0.1 from elsewhere, which NodePorts there need.
func (b *Backend) routeLocalhost() error {
	if !b.network.LocalhostNodePorts || !b.network.AllNodePorts {
		return nil
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/all/route_localnet", []byte("1"), 0); err != nil {
		b.log.Warn("NodePorts are not served on 127.0.0.1", "err", err)
	}
	return nil
}

// Apply is of proxy.Backend.
func (b *Backend) Apply(ctx context.Context, changes []model.Change) error {
	edits := map[model.Family]*edit{}
	for _, c := range changes {
		t := b.tables[c.Key().Family]
		if t == nil {
			continue
		}
		if edits[t.family] == nil {
			edits[t.family] = newEdit()
		}
		t.put(edits[t.family], c.Key(), c.New)
	}
	for family, e := range edits {
		b.tables[family].settle(e)
		if text := e.text(); len(text) > 0 {
			if err := restore(ctx, family, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropOthers removes what an earlier process or a kube-proxy left, in the transaction that makes the new rules.
func (e *edit) dropOthers(ctx context.Context, family model.Family) error {
	for _, name := range []string{nat, filter} {
		chains, err := existing(ctx, family, name)
		if err != nil {
			return err
		}
		for _, c := range chains {
			if _, kept := e.chains[name][c]; !kept && isOurs(c) {
				e.gone[name][c] = true
			}
		}
	}
	return nil
}

// kubelets are chains that are the kubelet's, or were.
var kubelets = map[string]bool{"KUBE-FIREWALL": true, "KUBE-KUBELET-CANARY": true, "KUBE-IPTABLES-HINT": true, "KUBE-MARK-DROP": true}

func isOurs(chain string) bool { return strings.HasPrefix(chain, "KUBE-") && !kubelets[chain] }

// existing lists the chains of a table.
func existing(ctx context.Context, family model.Family, name string) ([]string, error) {
	out, err := run(ctx, nil, programs[family]+"-save", "-t", name)
	if err != nil {
		return nil, err
	}
	var chains []string
	for line := range strings.Lines(string(out)) {
		if chain, ok := strings.CutPrefix(line, ":"); ok {
			chain, _, _ = strings.Cut(chain, " ")
			chains = append(chains, chain)
		}
	}
	return chains, nil
}

// hook has the kernel's chains lead to ours, before what others put there.
func hook(ctx context.Context, family model.Family) error {
	for _, j := range jumps {
		rule := append([]string{"-w", "5", "-t", j.table}, append([]string{"-C", j.from}, words(j.rule())...)...)
		if _, err := run(ctx, nil, programs[family], rule...); err == nil {
			continue
		}
		rule[4] = "-I"
		if _, err := run(ctx, nil, programs[family], rule...); err != nil {
			return err
		}
	}
	return nil
}

// words splits a rule of ours, in which only comments hold spaces.
func words(rule string) []string {
	var out []string
	for i, part := range strings.Split(rule, `"`) {
		if i%2 == 1 {
			out = append(out, part)
			continue
		}
		out = append(out, strings.Fields(part)...)
	}
	return out
}

func restore(ctx context.Context, family model.Family, text []byte) error {
	_, err := run(ctx, text, programs[family]+"-restore", "-w", "5", "--noflush", "--counters")
	return err
}

// runTimeout is for a program that waits for others which change rules.
const runTimeout = 2 * time.Minute

func run(ctx context.Context, input []byte, program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), nil
}

// Tampered is of proxy.Backend.
func (b *Backend) Tampered() <-chan struct{} { return b.watch.tampered }

// Close is of proxy.Backend.
func (b *Backend) Close() error {
	b.watch.close()
	return nil
}

// Cleanup removes what this backend, or a kube-proxy in mode iptables, made.
func Cleanup() error {
	var errs []error
	for family, program := range programs {
		if _, err := exec.LookPath(program + "-restore"); err == nil {
			errs = append(errs, cleanup(context.Background(), family))
		}
	}
	return errors.Join(errs...)
}

func cleanup(ctx context.Context, family model.Family) error {
	e := newEdit()
	e.gone[mangle] = map[string]bool{}
	for _, name := range []string{nat, filter, mangle} {
		chains, err := existing(ctx, family, name)
		if err != nil {
			return err
		}
		for _, c := range chains {
			if isOurs(c) {
				e.gone[name][c] = true
			}
		}
	}
	for _, j := range jumps {
		if e.gone[j.table][j.to] {
			if err := unhook(ctx, family, j); err != nil {
				return err
			}
		}
	}
	if text := e.text(); len(text) > 0 {
		return restore(ctx, family, text)
	}
	return nil
}

// unhook removes the rules that lead from a chain to one of ours, whoever made them and with whatever match.
func unhook(ctx context.Context, family model.Family, j jump) error {
	out, err := run(ctx, nil, programs[family], "-w", "5", "-t", j.table, "-S", j.from)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A ")
		if !ok || !strings.HasSuffix(rule, "-j "+j.to) {
			continue
		}
		if _, err := run(ctx, nil, programs[family], append([]string{"-w", "5", "-t", j.table, "-D"}, words(rule)...)...); err != nil {
			return err
		}
	}
	return nil
}
