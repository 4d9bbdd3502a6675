package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop/orlop/conmon"
	"github.com/orlop/orlop/image"
	"github.com/orlop/orlop/internal/config"
	"github.com/orlop/orlop/server"
	"github.com/orlop/orlop/server/cni"
	"github.com/orlop/orlop/server/label"
	"github.com/orlop/orlop/server/seccomp"
	"github.com/orlop/orlop/server/stream"
	"github.com/orlop/orlop/storage"
)

// Each part of the daemon is given its own piece of the configuration, in its own words. What is below root and
// run_root is laid out here and nowhere else.

func storageConfig(c config.Config, log *slog.Logger) storage.Config {
	return storage.Config{
		Root:          filepath.Join(c.Root, "storage"),
		RunRoot:       filepath.Join(c.RunRoot, "storage"),
		DriverOptions: c.Storage.OverlayOptions,
		Log:           log,
	}
}

func imageConfig(c config.Config, log *slog.Logger) image.Config {
	return image.Config{
		RegistriesConf:    c.Image.RegistriesConf,
		RegistriesConfDir: c.Image.RegistriesConfDir,
		PolicyPath:        c.Image.Policy,
		AuthFile:          c.Image.AuthFile,
		CertsDir:          c.Image.CertsDir,
		MaxParallelLayers: c.Image.MaxParallelLayers,
		MaxUnpackedBytes:  c.Image.MaxUnpackedBytes,
		MinFreeBytes:      c.Image.MinFreeBytes,
		PinnedImages:      c.Image.Pinned,
		Log:               log,
	}
}

func cniConfig(c config.Config) cni.Config {
	return cni.Config{
		ConfDir:        c.CNI.ConfDir,
		BinDirs:        c.CNI.BinDirs,
		CacheDir:       filepath.Join(c.Root, "cni"),
		DefaultNetwork: c.CNI.DefaultNetwork,
		ConfTemplate:   c.CNI.ConfTemplate,
	}
}

func conmonConfig(c config.Config, monitor string) conmon.Config {
	return conmon.Config{
		Path:    monitor,
		RunDir:  filepath.Join(c.RunRoot, "conmon"),
		ExitDir: filepath.Join(c.Root, "exits"),
	}
}

func serverConfig(c config.Config, monitor string) (server.Config, error) {
	defaults, err := containerDefaults(c.Container)
	if err != nil {
		return server.Config{}, err
	}
	shown, err := json.Marshal(c)
	if err != nil {
		return server.Config{}, err
	}
	systemd := systemdCgroups(c.Cgroup.Driver)
	parent, err := podParent(c.Cgroup.Parent, systemd)
	if err != nil {
		return server.Config{}, err
	}
	return server.Config{
		Root:          filepath.Join(c.Root, "server"),
		RunRoot:       filepath.Join(c.RunRoot, "server"),
		StorageRoot:   storageConfig(c, nil).Root,
		InitPath:      monitor,
		Version:       versionText(),
		CgroupParent:  parent,
		SystemdCgroup: systemd,
		Container:     defaults,
		Stream:        stream.Config{Address: c.Stream.Address, IdleTimeout: c.Stream.IdleTimeout},
		Shown:         shown,
	}, nil
}

func containerDefaults(c config.Container) (d server.ContainerDefaults, err error) {
	d = server.ContainerDefaults{
		Capabilities:    c.Capabilities,
		Env:             c.Env,
		Sysctls:         map[string]string{},
		PidsLimit:       c.PidsLimit,
		ShmBytes:        c.ShmBytes,
		AppArmorProfile: c.AppArmorProfile,
	}
	for _, s := range c.Sysctls {
		name, value, _ := strings.Cut(s, "=")
		d.Sysctls[name] = value
	}
	for _, s := range c.Ulimits {
		limit, err := config.ParseUlimit(s)
		if err != nil {
			return d, fmt.Errorf("container.ulimits: %w", err)
		}
		d.Ulimits = append(d.Ulimits, rspec.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(limit.Name), Soft: limit.Soft, Hard: limit.Hard,
		})
	}
	if c.SeccompProfile != "" {
		if d.SeccompProfile, err = seccomp.Load(c.SeccompProfile); err != nil {
			return d, fmt.Errorf("container.seccomp_profile: %w", err)
		}
	}
	return d, nil
}

// systemdCgroups decides who makes cgroups. The directory exists if and only if systemd is process 1, sd_booted(3).
func systemdCgroups(driver string) bool {
	if driver == "auto" {
		_, err := os.Stat("/run/systemd/system")
		return err == nil
	}
	return driver == "systemd"
}

// podParent is the cgroup of pods that name none, in the words of the driver.
func podParent(configured string, systemd bool) (string, error) {
	slice := strings.HasSuffix(configured, ".slice")
	switch {
	case configured != "" && slice != systemd:
		return "", fmt.Errorf("cgroup.parent = %q does not go with the cgroup driver; write a slice for systemd and a path for cgroupfs",
			configured)
	case configured != "":
		return configured, nil
	case systemd:
		return "orlop.slice", nil
	}
	return "/orlop", nil
}

// setSELinux must come before anything asks whether labels mean anything.
func setSELinux(mode string) error {
	switch {
	case mode == "off":
		label.Disable()
	case mode == "on" && !label.Enabled():
		return errors.New(`container.selinux = "on": this kernel has SELinux off; enable it, or set "auto"`)
	}
	return nil
}

// monitorPath finds orlop-conmon: where it was configured, else beside this binary, else in $PATH.
func monitorPath(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "orlop-conmon")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("orlop-conmon")
	if err != nil {
		return "", fmt.Errorf("monitor: %w; install it beside orlop, or set monitor.path", err)
	}
	return filepath.Abs(path)
}
