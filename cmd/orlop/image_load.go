package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func newImageCommand(flags *configFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Work on images without a registry",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newImageLoadCommand(flags))
	return cmd
}

func newImageLoadCommand(flags *configFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "load PATH NAME",
		Short: "Put an image from a directory or file into the store",
		Long: "Has the daemon read an image from PATH, an OCI layout directory or an OCI or Docker archive file, and store it " +
			"as NAME, a full name with a tag such as registry.example/app:1. Prints the image's ID.",
		Example: "  orlop image load ./nginx-layout localhost/nginx:demo",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0]) // the daemon's working directory is another
			if err != nil {
				return err
			}
			if _, err := os.Stat(path); err != nil {
				return err
			}
			req, err := structpb.NewStruct(map[string]any{"path": path, "name": args[1]})
			if err != nil {
				return err
			}
			return flags.withClient(func(c *client) error {
				id := new(wrapperspb.StringValue)
				if err := c.conn.Invoke(cmd.Context(), "/"+adminName+"/LoadImage", req, id); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), id.GetValue())
				return err
			})
		},
	}
}
