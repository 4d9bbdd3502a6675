package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/orlop/orlop/internal/config"
)

func newConfigCommand(flags *configFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Print the default configuration file, or check yours",
		Long:    "Prints the default configuration file, with what every key means.",
		Example: "  orlop config >/etc/orlop/orlop.toml\n  orlop config check ./orlop.toml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return config.WriteDefault(cmd.OutOrStdout())
		},
	}
	cmd.AddCommand(newConfigCheckCommand(flags))
	return cmd
}

func newConfigCheckCommand(flags *configFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration and print what it changes",
		Long: "Reads FILE and its drop-ins in FILE.d, or without FILE the configuration of this machine, reports every " +
			"mistake with file, line and key, and prints what is not at its default and where that was written.",
		Example: "  orlop config check ./orlop.toml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				flags.file = args[0]
			}
			c, places, err := flags.loadPlaces()
			if err != nil {
				return fmt.Errorf("configuration:\n%w", err)
			}
			return writeChanges(cmd.OutOrStdout(), c, places)
		},
	}
}

// writeChanges prints each key that a file set to something else than the default, as TOML that could be read again.
func writeChanges(w io.Writer, c config.Config, places map[string]config.Place) error {
	defaults := config.Defaults()
	for _, k := range config.Keys() {
		value := k.Format(&c)
		if value == k.Format(&defaults) {
			continue
		}
		if _, err := fmt.Fprintf(w, "%s = %s # %v\n", k.Name, value, places[k.Name]); err != nil {
			return err
		}
	}
	return nil
}
