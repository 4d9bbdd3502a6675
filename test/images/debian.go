package images

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// debs downloads packages with all that they depend on, as if nothing were installed, and returns the files in the
// order of installation. It needs no root, only apt and its lists.
func debs(ctx context.Context, cache string, packages ...string) ([]string, error) {
	archives := filepath.Join(cache, "debs")
	if err := os.MkdirAll(filepath.Join(archives, "partial"), 0o755); err != nil {
		return nil, err
	}
	status := filepath.Join(cache, "no-packages")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	install := func(how string) (string, error) {
		args := []string{
			"-o", "Dir::State::status=" + status, "-o", "Dir::Cache::archives=" + archives,
			"-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1", "-qq", "-y", "--no-install-recommends",
			how, "install",
		}
		return run(ctx, "apt-get", append(args, packages...)...)
	}
	plan, err := install("--simulate")
	if err != nil {
		// A fresh machine has no lists yet.
		if _, err := run(ctx, "apt-get", "update", "-qq"); err != nil {
			return nil, err
		}
		if plan, err = install("--simulate"); err != nil {
			return nil, err
		}
	}
	if _, err := install("--download-only"); err != nil {
		return nil, err
	}
	return planned(plan, archives)
}

// planned reads the lines of a simulation, "Inst NAME (VERSION ORIGIN [ARCH])", and finds the packages' files.
func planned(plan, archives string) ([]string, error) {
	var files []string
	for line := range strings.Lines(plan) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != "Inst" {
			continue
		}
		version := strings.ReplaceAll(url.PathEscape(strings.TrimPrefix(fields[2], "(")), ":", "%3a")
		pattern := filepath.Join(archives, fields[1]+"_"+version+"_*.deb")
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) != 1 {
			return nil, fmt.Errorf("package %s: %d files match %s", fields[1], len(found), pattern)
		}
		files = append(files, found[0])
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("apt-get plans to install nothing: %q", plan)
	}
	return files, nil
}

// packages adds the files of packages.
func (b *builder) packages(ctx context.Context, files []string) error {
	for _, file := range files {
		cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		if err := b.copyTar(out); err != nil {
			_ = cmd.Process.Kill() // its reader is gone
			_ = cmd.Wait()
			return fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("dpkg-deb %s: %w", file, err)
		}
	}
	return nil
}

// run returns what a command printed; a command that fails says why on standard error.
func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return string(out), nil
}
