package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/orlop/orlop/kubelet/config"
)

// The unit starts the program in a way that it takes, with the configuration that is installed, which has no mistakes.
func TestUnit(t *testing.T) {
	unit, err := os.ReadFile("../../contrib/systemd/orlop-kubelet.service")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(unit), "\nExecStart=")
	line, _, _ = strings.Cut(line, "\n")
	want := []string{"/usr/local/bin/orlop-kubelet", "--config", "/etc/orlop/kubelet.yaml", "$KUBELET_ARGS"}
	if words := strings.Fields(line); !slices.Equal(words, want) {
		t.Errorf("it starts %q; `make install` installs for %q", words, want)
	}
	c, err := config.Load("../../contrib/config/kubelet.yaml", "")
	if err != nil {
		t.Fatal(err)
	}
	c.Default()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if warnings := c.Warnings(); len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	if c.StaticPodPath != "/etc/orlop/manifests" || c.ContainerRuntimeEndpoint != "unix:///run/orlop/orlop.sock" {
		t.Errorf("manifests in %s, runtime at %s", c.StaticPodPath, c.ContainerRuntimeEndpoint)
	}
}
