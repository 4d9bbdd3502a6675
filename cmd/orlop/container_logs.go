package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func newLogsCommand(flags *configFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "logs CONTAINER",
		Short: "Print what a container wrote",
		Long: "Prints the log of a container, named by its name or the beginning of its ID: what it wrote to standard output " +
			"and to standard error, each to our own.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.withClient(func(c *client) error {
				id, err := c.findContainer(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				st, err := c.ContainerStatus(cmd.Context(), &cri.ContainerStatusRequest{ContainerId: id})
				if err != nil {
					return err
				}
				path := st.GetStatus().GetLogPath()
				if path == "" {
					return fmt.Errorf("container %s has no log: its pod has no log_directory, or it no log_path", id)
				}
				f, err := os.Open(path)
				if err != nil {
					return fmt.Errorf("container %s: %w", id, err)
				}
				defer f.Close()
				return printLog(f, cmd.OutOrStdout(), cmd.ErrOrStderr())
			})
		},
	}
}

// printLog reads CRI's log format, "TIME STREAM TAGS TEXT" a line, where the first tag is P if the line goes on in the
// next record of its stream and F if it is whole.
func printLog(r io.Reader, stdout, stderr io.Writer) error {
	in := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // a last line without its end is being written
		}
		if err != nil {
			return err
		}
		parts := bytes.SplitN(line, []byte(" "), 4)
		if len(parts) != 4 {
			return fmt.Errorf("line %d of the log is not in CRI's format", n)
		}
		text := parts[3]
		if tag, _, _ := bytes.Cut(parts[2], []byte(":")); string(tag) == "P" {
			text = bytes.TrimSuffix(text, []byte("\n"))
		}
		out := stdout
		if string(parts[1]) == "stderr" {
			out = stderr
		}
		if _, err := out.Write(text); err != nil {
			return err
		}
	}
}
