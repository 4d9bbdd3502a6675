package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func newExecCommand(flags *configFlags) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "exec CONTAINER -- COMMAND [ARG...]",
		Short: "Run a command in a container and show what it printed",
		Long: "Runs a command without input in a running container, named by its name or the beginning of its ID, prints " +
			"its output when it has ended, and ends with its exit code. For a terminal use crictl exec -it.",
		Example: "  orlop exec web -- cat /etc/os-release",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.withClient(func(c *client) error {
				id, err := c.findContainer(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				result, err := c.ExecSync(cmd.Context(), &cri.ExecSyncRequest{
					ContainerId: id, Cmd: args[1:], Timeout: int64((timeout + time.Second - 1) / time.Second),
				})
				if err != nil {
					return err
				}
				_, outErr := cmd.OutOrStdout().Write(result.GetStdout())
				_, errErr := cmd.ErrOrStderr().Write(result.GetStderr())
				if code := result.GetExitCode(); code != 0 {
					return exitCode(code)
				}
				return errors.Join(outErr, errErr)
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "end the command after `DURATION`, in whole seconds; 0 for never")
	return cmd
}

// findContainer returns the ID of the container with this name or whose ID begins with it. A running one counts before
// those that have ended: they may have the same name in the same pod.
func (c *client) findContainer(ctx context.Context, name string) (id string, err error) {
	list, err := c.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return "", err
	}
	var running, ended []string
	for _, ctr := range list.GetContainers() {
		switch {
		case ctr.GetMetadata().GetName() != name && !strings.HasPrefix(ctr.GetId(), name):
		case ctr.GetState() == cri.ContainerState_CONTAINER_RUNNING:
			running = append(running, ctr.GetId())
		default:
			ended = append(ended, ctr.GetId())
		}
	}
	if len(running) > 0 {
		return only("container", name, running)
	}
	return only("container", name, ended)
}
