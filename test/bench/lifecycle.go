package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// alive ends at once when it is told to.
const alive = `trap "exit 0" TERM; while :; do sleep 1000 & wait; done`

func (b *bench) onHost(ctx context.Context) error {
	return b.lifecycle(ctx, "host", cri.NamespaceMode_NODE)
}
func (b *bench) onCNI(ctx context.Context) error {
	return b.lifecycle(ctx, "CNI", cri.NamespaceMode_POD)
}

// lifecycle measures each call of a pod's life, one pod after the other.
func (b *bench) lifecycle(ctx context.Context, network string, mode cri.NamespaceMode) error {
	calls := newSeries(network)
	for i := range b.runs + 1 { // the first warms up
		if i == 1 {
			calls = newSeries(network)
		}
		if err := b.onePod(ctx, calls, mode); err != nil {
			return err
		}
	}
	b.report.Calls = append(b.report.Calls, calls.rows()...)
	return nil
}

func (b *bench) onePod(ctx context.Context, calls *series, mode cri.NamespaceMode) error {
	p := b.newPod(mode)
	began := time.Now()
	made, err := b.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p})
	calls.add("RunPodSandbox", began)
	if err != nil {
		return err
	}
	pod := made.PodSandboxId
	defer func() {
		_, _ = b.Runtime.RemovePodSandbox(context.WithoutCancel(ctx), &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	}()
	began = time.Now()
	created, err := b.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: p, Config: b.container(alive)})
	calls.add("CreateContainer", began)
	if err != nil {
		return err
	}
	id := created.ContainerId
	steps := []struct {
		name string
		do   func() error
	}{
		{"StartContainer", func() error {
			_, err := b.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		}},
		{"ExecSync", func() error {
			_, err := b.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/true"}, Timeout: 10})
			return err
		}},
		{"StopContainer", func() error {
			_, err := b.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 10})
			return err
		}},
		{"StopPodSandbox", func() error {
			_, err := b.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		}},
	}
	for _, step := range steps {
		began := time.Now()
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		calls.add(step.name, began)
	}
	b.split(ctx, calls, pod, id)
	began = time.Now()
	_, err = b.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	calls.add("RemovePodSandbox", began)
	return err
}

// split adds what the runtime itself says of its steps, if it does: milliseconds by name, in the verbose status.
func (b *bench) split(ctx context.Context, calls *series, pod, id string) {
	if s, err := b.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true}); err == nil {
		calls.addSteps("RunPodSandbox", s.Info["info"])
	}
	if s, err := b.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id, Verbose: true}); err == nil {
		calls.addSteps("CreateContainer", s.Info["info"])
	}
}

func (s *series) addSteps(call, info string) {
	var said struct {
		Timings map[string]float64 `json:"timings"`
	}
	if json.Unmarshal([]byte(info), &said) != nil {
		return
	}
	for step, ms := range said.Timings {
		s.put("  "+call+": "+step, time.Duration(ms*float64(time.Millisecond)))
	}
}

func (b *bench) newPod(mode cri.NamespaceMode) *cri.PodSandboxConfig {
	b.pod++
	name := fmt.Sprintf("bench-%d-%d", time.Now().UnixNano(), b.pod)
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		LogDirectory: filepath.Join(b.logs, name),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.96.0.10"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: b.cgroupParent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Network: mode, Pid: cri.NamespaceMode_CONTAINER,
			}},
		},
	}
}

func (b *bench) container(script string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"},
		Image:    &cri.ImageSpec{Image: b.image},
		Command:  []string{"/bin/sh", "-c", script},
		LogPath:  "c.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			Seccomp:          &cri.SecurityProfile{ProfileType: b.seccomp},
		}},
	}
}
