package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// program is a command that is a program of its own, so that the daemon does not carry the Kubernetes clients. It is
// installed beside this one.
type program struct {
	name, use, short, long, example string
}

var programs = []program{
	{
		name: "orlop-kubelet", use: "kubelet",
		short: "Keep the pods of this node: a kubelet over any CRI runtime",
		long: "Keeps the pods that an API server binds to this node, or that lie in a directory, over Orlop or any other runtime that " +
			"serves CRI. It becomes orlop-kubelet, whose flags are kubelet's; see orlop-kubelet(8).",
		example: "  orlop kubelet --pod-manifest-path /etc/orlop/manifests",
	},
	{
		name: "orlop-proxy", use: "proxy",
		short: "Send packets to Services to their pods, in the place of kube-proxy",
		long: "Has the kernel send what is for a Service's address to one of its pods, in mode nftables, iptables or ipvs. It becomes " +
			"orlop-proxy, whose flags are kube-proxy's; see orlop-proxy(8).",
		example: "  orlop proxy --services-dir /etc/orlop/services",
	},
}

func (p program) command() *cobra.Command {
	return &cobra.Command{
		Use:                p.use + " [flags]",
		Short:              p.short,
		Long:               p.long,
		Example:            p.example,
		DisableFlagParsing: true, // they are the program's
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := p.find()
			if err != nil {
				return err
			}
			return syscall.Exec(path, append([]string{p.name}, args...), os.Environ())
		},
	}
}

// find looks beside this program first: they are installed together.
func (p program) find() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), p.name)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath(p.name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside %s nor in PATH; install both: %w", p.name, self, err)
	}
	return path, nil
}
