package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

func newPodCommand(flags *configFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pod",
		Short: "Run and remove pods by hand, on a node without crictl",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newPodRunCommand(flags), newPodRemoveCommand(flags))
	return cmd
}

func newPodRunCommand(flags *configFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "run POD CONTAINER...",
		Short: "Run a pod with its containers from files",
		Long: "Runs the pod that the file POD describes, and in it the containers of the other files. They are CRI's " +
			"PodSandboxConfig and ContainerConfig in YAML or JSON, as crictl takes them. Images that are not there are " +
			"pulled. If anything fails, the pod is removed again.",
		Example: "  orlop pod run examples/pod.yaml examples/container.yaml",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			pod := new(cri.PodSandboxConfig)
			if err := readMessage(args[0], pod); err != nil {
				return err
			}
			containers := make([]*cri.ContainerConfig, len(args)-1)
			for i, file := range args[1:] {
				containers[i] = new(cri.ContainerConfig)
				if err := readMessage(file, containers[i]); err != nil {
					return err
				}
			}
			return flags.withClient(func(c *client) error {
				return c.runPod(cmd.Context(), cmd.OutOrStdout(), pod, containers)
			})
		},
	}
}

// readMessage reads YAML or JSON. Field names may be written as in CRI's definition or in camel case, enums as names
// or numbers.
func readMessage(file string, m proto.Message) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := protojson.Unmarshal(text, m); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func (c *client) runPod(ctx context.Context, out io.Writer, pod *cri.PodSandboxConfig, containers []*cri.ContainerConfig) (err error) {
	if dir := pod.GetLogDirectory(); dir != "" { // a kubelet makes it
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	made, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return fmt.Errorf("pod %s: %w", pod.GetMetadata().GetName(), err)
	}
	id := made.GetPodSandboxId()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.removePod(context.WithoutCancel(ctx), id))
		}
	}()
	fmt.Fprintln(out, "pod", id, pod.GetMetadata().GetNamespace()+"/"+pod.GetMetadata().GetName())
	for _, config := range containers {
		ctr, err := c.runContainer(ctx, id, pod, config)
		if err != nil {
			return fmt.Errorf("container %s: %w", config.GetMetadata().GetName(), err)
		}
		fmt.Fprintln(out, "container", ctr, config.GetMetadata().GetName())
	}
	st, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return err
	}
	for _, ip := range addresses(st.GetStatus().GetNetwork()) {
		fmt.Fprintln(out, "address", ip)
	}
	return nil
}

func (c *client) runContainer(ctx context.Context, podID string, pod *cri.PodSandboxConfig, config *cri.ContainerConfig) (id string, err error) {
	st, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: config.GetImage()})
	if err != nil {
		return "", err
	}
	if st.GetImage() == nil {
		if _, err := c.images.PullImage(ctx, &cri.PullImageRequest{Image: config.GetImage(), SandboxConfig: pod}); err != nil {
			return "", err
		}
	}
	made, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: podID, Config: config, SandboxConfig: pod})
	if err != nil {
		return "", err
	}
	_, err = c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.GetContainerId()})
	return made.GetContainerId(), err
}
