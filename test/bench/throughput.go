package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const lineBytes = 100

// log measures how fast a container that writes without a pause gets its lines into its log.
func (b *bench) log(ctx context.Context) error {
	p := b.newPod(cri.NamespaceMode_NODE)
	made, err := b.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p})
	if err != nil {
		return err
	}
	defer func() {
		_, _ = b.Runtime.RemovePodSandbox(context.WithoutCancel(ctx), &cri.RemovePodSandboxRequest{PodSandboxId: made.PodSandboxId})
	}()
	script := fmt.Sprintf(`yes %0*d | head -n %d`, lineBytes-1, 7, b.logBytes/lineBytes)
	created, err := b.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: made.PodSandboxId, SandboxConfig: p, Config: b.container(script),
	})
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := b.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return err
	}
	for {
		s, err := b.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: created.ContainerId})
		if err != nil {
			return err
		}
		if s.Status.State == cri.ContainerState_CONTAINER_EXITED {
			if s.Status.ExitCode != 0 {
				return fmt.Errorf("the writer ended with %d: %s", s.Status.ExitCode, s.Status.Message)
			}
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.report.LogMBps = float64(b.logBytes) / 1e6 / time.Since(began).Seconds()
	return nil
}

// pullRuns is how often an image is pulled; the report has the best, since a registry's disk is warm by then.
const pullRuns = 3

func (b *bench) pulls(ctx context.Context) error {
	if b.pull != "" {
		for range pullRuns {
			if err := b.onePull(ctx); err != nil {
				return err
			}
		}
	}
	if b.image == "" {
		return errors.New("-image names no image")
	}
	_, err := b.Image.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: b.image}})
	return err
}

func (b *bench) onePull(ctx context.Context) error {
	spec := &cri.ImageSpec{Image: b.pull}
	if _, err := b.Image.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
		return err
	}
	began := time.Now()
	if _, err := b.Image.PullImage(ctx, &cri.PullImageRequest{Image: spec}); err != nil {
		return err
	}
	took := time.Since(began)
	status, err := b.Image.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		return err
	}
	b.report.Pulls = append(b.report.Pulls, took.Seconds())
	b.report.PulledMB = float64(status.Image.GetSize()) / 1e6
	return nil
}
