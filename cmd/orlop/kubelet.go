package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// kubeletProgram is a program of its own, so that the daemon does not carry the Kubernetes clients.
const kubeletProgram = "orlop-kubelet"

func newKubeletCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubelet [flags]",
		Short: "Keep the pods of this node: a kubelet over any CRI runtime",
		Long: "Keeps the pods that an API server binds to this node, or that lie in a directory, over Orlop or any other runtime that " +
			"serves CRI. It becomes " + kubeletProgram + ", whose flags are kubelet's; see orlop-kubelet(8).",
		Example:            "  orlop kubelet --pod-manifest-path /etc/orlop/manifests",
		DisableFlagParsing: true, // they are the program's
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := findKubelet()
			if err != nil {
				return err
			}
			return syscall.Exec(path, append([]string{kubeletProgram}, args...), os.Environ())
		},
	}
}

// findKubelet looks beside this program first: they are installed together.
func findKubelet() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), kubeletProgram)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	path, err := exec.LookPath(kubeletProgram)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside %s nor in PATH; install both: %w", kubeletProgram, self, err)
	}
	return path, nil
}
