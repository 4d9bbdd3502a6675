package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// program is the iptables of a family: the one that the administrator of the node chose.
type program struct {
	family *family
	// nft is true if the program makes rules of nftables, false for legacy ones.
	nft bool
	// began is told the process before it changes anything; nil if nobody wants to know.
	began func(pid int) error
}

// findProgram asks iptables which kind it is: "iptables v1.8.9 (nf_tables)".
func findProgram(ctx context.Context, f *family) (*program, error) {
	out, err := exec.CommandContext(ctx, f.program, "--version").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%s: %w; install iptables or choose proxy mode nftables", f.program, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s --version: %w", f.program, err)
	}
	return &program{family: f, nft: strings.Contains(string(out), "nf_tables")}, nil
}

// variant is what the program of the same kind is called by its full name; other that of the other kind.
func (p *program) variant(other bool) string {
	if p.nft != other {
		return p.family.program + "-nft"
	}
	return p.family.program + "-legacy"
}

// list is one chain, or the whole table where chain is empty.
func (p *program) list(ctx context.Context, table, chain string) ([]string, error) {
	args := []string{"-w", "-t", table, "-S"}
	if chain != "" {
		args = append(args, chain)
	}
	return run(ctx, p.family.program, args...)
}

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

// restore changes rules. Nothing happens before all of input's first table is read, so that began is in time.
func (p *program) restore(ctx context.Context, input []byte) error {
	if len(input) == 0 {
		return nil
	}
	cmd := exec.CommandContext(ctx, p.family.program+"-restore", "-w", "--noflush", "--counters")
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
		return fmt.Errorf("%s-restore: %w: %s", p.family.program, failed, explain(stderr.String(), input))
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
