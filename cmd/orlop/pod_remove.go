package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func newPodRemoveCommand(flags *configFlags) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "rm POD...",
		Short:   "Stop and remove pods with all that is in them",
		Long:    "Stops and removes pods, each named by the beginning of its ID or by NAMESPACE/NAME.",
		Example: "  orlop pod rm demo/web\n  orlop pod rm --all",
		Args: func(_ *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return errors.New("name pods, or use --all")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.withClient(func(c *client) error { return c.removePods(cmd.Context(), args, all) })
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove every pod of the node")
	return cmd
}

// removePods goes on after an error.
func (c *client) removePods(ctx context.Context, names []string, all bool) error {
	list, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var ids []string
	for _, p := range list.GetItems() {
		if all {
			ids = append(ids, p.GetId())
		}
	}
	var errs []error
	for _, name := range names {
		id, err := findPod(list.GetItems(), name)
		ids = append(ids, id)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, id := range ids {
		errs = append(errs, c.removePod(ctx, id))
	}
	return errors.Join(errs...)
}

func findPod(pods []*cri.PodSandbox, name string) (id string, err error) {
	var found []string
	for _, p := range pods {
		if strings.HasPrefix(p.GetId(), name) || p.GetMetadata().GetNamespace()+"/"+p.GetMetadata().GetName() == name {
			found = append(found, p.GetId())
		}
	}
	return only("pod", name, found)
}

// only returns the one ID that a name stands for.
func only(what, name string, ids []string) (string, error) {
	switch len(ids) {
	case 0:
		return "", fmt.Errorf("no %s is called %q; see `orlop status`", what, name)
	case 1:
		return ids[0], nil
	}
	return "", fmt.Errorf("%q may be any of %s; write more of the ID", name, strings.Join(ids, ", "))
}

func (c *client) removePod(ctx context.Context, id string) error {
	if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("pod %s: stop: %w", id, err)
	}
	if _, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("pod %s: remove: %w", id, err)
	}
	return nil
}
