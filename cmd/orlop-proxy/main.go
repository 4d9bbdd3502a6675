// Command orlop-proxy is what `orlop proxy` runs: it makes a node treat packets to Services as the Service API says, in
// the place of kube-proxy. It is a program of its own because the Kubernetes clients would cost `orlop serve` memory, see
// docs/architecture.md.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/orlop/orlop/proxy/config"
)

// version is set by the linker (-X main.version=…); see the Makefile.
var version = "dev"

// gcPercent is how much garbage there may be before it is collected, in percent of what is in use. Objects stay for long
// and little is made anew, so that less than Go's 100 costs next to no time.
const gcPercent = 50

func main() {
	debug.SetGCPercent(gcPercent)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal is not caught: it ends a program whose own end takes too long
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "orlop proxy:", err)
		os.Exit(1)
	}
}

func newCommand() *cobra.Command {
	flags := &config.Flags{}
	level := ""
	cmd := &cobra.Command{
		Use:   "orlop-proxy",
		Short: "Send packets to Services to their pods, in the place of kube-proxy",
		Long: "Has the kernel send what is for a Service's address to one of its pods, in mode nftables, iptables or ipvs. It reads " +
			"the configuration of kube-proxy (KubeProxyConfiguration) and takes its flags, so it can stand where kube-proxy stood. " +
			"Without an API server the Services come from a directory. When it ends, the rules stay; --cleanup removes them.",
		Example: "  orlop proxy --config /var/lib/kube-proxy/config.conf\n" +
			"  orlop proxy --services-dir /etc/orlop/services --kubelet-url http://127.0.0.1:10250",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true, // a failure at run time is no reason to explain flags
		SilenceErrors: true, // main prints them
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLogger(level)
			if err != nil {
				return err
			}
			if flags.Cleanup {
				return cleanup("")
			}
			c, err := load(flags, log)
			if err != nil {
				return err
			}
			s := settings{flags: flags, config: c, log: log}
			switch {
			case flags.WriteConfigTo != "":
				return c.Write(flags.WriteConfigTo)
			case flags.InitOnly:
				return initOnly(s)
			}
			return run(cmd.Context(), s)
		},
	}
	cmd.AddCommand(newExplainCommand())
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

// load reads the file, lets flags replace what it says, and fills in the rest.
func load(flags *config.Flags, log *slog.Logger) (*config.Config, error) {
	c, err := config.Load(flags.File)
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
