// Package xtables runs iptables, for the modes whose rules are made by it: it finds the program that the node has, tells what
// chains of ours the kernel holds, changes them, and notices that somebody else did.
package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/orlop/orlop/proxy/model"
)

// Program is the iptables of a family: the one that the administrator of the node chose.
type Program struct {
	Family model.Family
	Name   string // as ip6tables
	// NFT is true if the program makes rules of nftables, false for legacy ones.
	NFT bool
	// began is told the process before it changes anything; nil if nobody wants to know.
	began func(pid int) error
}

var names = map[model.Family]string{model.IPv4: "iptables", model.IPv6: "ip6tables"}

// find asks iptables which kind it is: "iptables v1.8.9 (nf_tables)".
func find(ctx context.Context, f model.Family) (*Program, error) {
	name := names[f]
	out, err := exec.CommandContext(ctx, name, "--version").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s: %w; install iptables or choose proxy mode nftables", name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s --version: %w", name, err)
	}
	return &Program{Family: f, Name: name, NFT: strings.Contains(string(out), "nf_tables")}, nil
}

// variant is what the program of a kind is called if there are both.
func variant(f model.Family, nft bool) string {
	if nft {
		return names[f] + "-nft"
	}
	return names[f] + "-legacy"
}

// hasLegacyTables tells whether the kernel has legacy rules. The program for them is not to be asked, as it would make the
// tables.
func hasLegacyTables(f model.Family) bool {
	file := "/proc/thread-self/net/ip_tables_names"
	if f == model.IPv6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	tables, err := os.ReadFile(file)
	return err == nil && bytes.Contains(tables, []byte(NAT))
}

// List is one chain, or the whole table where chain is empty.
func (p *Program) List(ctx context.Context, table, chain string) ([]string, error) {
	args := []string{"-w", "-t", table, "-S"}
	if chain != "" {
		args = append(args, chain)
	}
	return run(ctx, p.Name, args...)
}

// run is the lines that a program prints.
func run(ctx context.Context, name string, args ...string) ([]string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, firstLine(stderr.String()))
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"), nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// Restore changes rules. Nothing happens before all of input's first table is read, so that began is in time.
func (p *Program) Restore(ctx context.Context, input []byte) error {
	if len(input) == 0 {
		return nil
	}
	cmd := exec.CommandContext(ctx, p.Name+"-restore", "-w", "--noflush", "--counters")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("%s: %w", cmd.Path, err)
	}
	cmd.Stdin = reader
	err = cmd.Start()
	reader.Close()
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", cmd.Path, err), writer.Close())
	}
	if p.began != nil {
		err = p.began(cmd.Process.Pid)
	}
	if err == nil {
		_, err = writer.Write(input) // if the program ends early, what it says matters more than that it did
	}
	if failed := errors.Join(writer.Close(), cmd.Wait()); failed != nil {
		return fmt.Errorf("%s-restore: %w: %s", p.Name, failed, explain(stderr.String(), input))
	}
	return err
}

// explain adds the line that the program complains of: "iptables-restore: line 7 failed".
func explain(stderr string, input []byte) string {
	message := strings.TrimSpace(stderr)
	for _, word := range strings.Fields(message) {
		var n int
		if _, err := fmt.Sscanf(word, "%d", &n); err != nil {
			continue
		}
		if lines := bytes.Split(input, []byte("\n")); n > 0 && n <= len(lines) {
			return fmt.Sprintf("%s: %q", message, lines[n-1])
		}
	}
	return message
}
