// Command orlop is a CRI container runtime: `orlop serve` is the daemon that a kubelet or crictl talks to, the other
// commands are for people. See docs/architecture.md for what runs beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/orlop/orlop/internal/config"
	"github.com/orlop/orlop/storage"
)

// version is set by the linker (-X main.version=…); see the Makefile.
var version = ""

func main() {
	if storage.Init() {
		return
	}
	os.Exit(run())
}

func run() (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal is not caught: it ends a program whose own end takes too long
	err := newRootCommand().ExecuteContext(ctx)
	var exit exitCode
	switch {
	case errors.As(err, &exit):
		return int(exit)
	case err != nil:
		fmt.Fprintln(os.Stderr, "orlop:", err)
		return 1
	}
	return 0
}

// exitCode is an error that has been told already, in the words of a command that we ran for somebody.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// configFlags are the only flags that every command has: where the configuration is. All else is in it.
type configFlags struct{ file, dir string }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "orlop",
		Short: "A container runtime for Kubernetes nodes (CRI)",
		Long: "Orlop runs pods for a kubelet, for crictl, or for any other client of the Kubernetes Container Runtime Interface. " +
			"`orlop serve` is the daemon. Everything it does is set in one file, see orlop.toml(5).",
		Version:       versionText(),
		SilenceUsage:  true, // a failure at run time is no reason to explain flags
		SilenceErrors: true, // main prints them
	}
	root.SetVersionTemplate("orlop {{.Version}}\n")
	flags := new(configFlags)
	root.PersistentFlags().StringVar(&flags.file, "config", "",
		"configuration `FILE` (default "+config.DefaultPath+", which may be missing)")
	root.PersistentFlags().StringVar(&flags.dir, "config-dir", "",
		"`DIR` of drop-ins, *.toml, read in the order of their names (default FILE.d)")
	mustMark(root.MarkPersistentFlagFilename("config", "toml"))
	mustMark(root.MarkPersistentFlagDirname("config-dir"))
	root.AddCommand(
		newServeCommand(flags),
		newNodeCommand(flags),
		newStatusCommand(flags),
		newConfigCommand(flags),
		newImageCommand(flags),
		newPodCommand(flags),
		newExecCommand(flags),
		newLogsCommand(flags),
		newVersionCommand(),
	)
	for _, p := range programs {
		root.AddCommand(p.command())
	}
	return root
}

// mustMark is for the hints that shell completion takes from flags: they fail only for a flag that is not there.
func mustMark(err error) {
	if err != nil {
		panic(err)
	}
}

func (f *configFlags) load() (config.Config, error) {
	c, _, err := f.loadPlaces()
	return c, err
}

func (f *configFlags) loadPlaces() (config.Config, map[string]config.Place, error) {
	files, err := config.Files(f.file, f.dir)
	if err != nil {
		return config.Config{}, nil, err
	}
	return config.Load(files)
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "orlop", versionText())
			return err
		},
	}
}

// versionText is the version that the build was given, else the one that the go command knows.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "0.0.0-dev"
}
