// Command orlop-kubelet is what `orlop kubelet` runs: a kubelet over any CRI v1 runtime. It is a program of its own because
// the Kubernetes clients would cost `orlop serve` memory, see docs/architecture.md.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/orlop/orlop/kubelet/config"
)

// version is set by the linker (-X main.version=…); see the Makefile.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal is not caught: it ends a program whose own end takes too long
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "orlop kubelet:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	flags := &config.Flags{}
	level := ""
	cmd := &cobra.Command{
		Use:   "orlop-kubelet",
		Short: "Keep the pods of this node: a kubelet over any CRI runtime",
		Long: "Keeps the pods that an API server binds to this node, or that lie in a directory, as their specs want them, over any " +
			"runtime that serves CRI v1. It reads the configuration of kubelet (KubeletConfiguration) and takes its flags, so it can " +
			"stand in a unit that was made for kubelet. Without --kubeconfig the node stands alone: its pods come from staticPodPath, " +
			"and ConfigMaps and Secrets that lie there too are theirs.",
		Example: "  orlop kubelet --pod-manifest-path /etc/orlop/manifests\n" +
			"  orlop kubelet --config /var/lib/kubelet/config.yaml --kubeconfig /etc/kubernetes/kubelet.conf",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true, // a failure at run time is no reason to explain flags
		SilenceErrors: true, // main prints them
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(level)
			if err != nil {
				return err
			}
			c, err := load(flags, log)
			if err != nil {
				return err
			}
			return run(cmd.Context(), settings{flags: flags, config: c, log: log})
		},
	}
	flags.AddTo(cmd.Flags())
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func newLogger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: write debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

// load reads files, lets flags replace what they say, and fills in the rest.
func load(flags *config.Flags, log *slog.Logger) (*config.Config, error) {
	c, err := config.Load(flags.File, flags.Dir)
	if err != nil {
		return nil, err
	}
	flags.Apply(c)
	c.Default()
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("configuration:\n%w", err)
	}
	for _, warning := range c.Warnings() {
		log.Warn(warning)
	}
	return c, nil
}
